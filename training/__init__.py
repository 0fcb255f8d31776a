"""Features -> trained models: what is learnt (tasks), from what (data), and how."""
