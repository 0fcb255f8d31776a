"use strict"; // camera and microphone, a new answer about every second, and how late it comes
const WINDOW = 2000; // milliseconds that an answer is about
const EVERY = 1000; // between the starts of two windows
const SMALLEST = 1000; // bytes: less is no picture and no sound
const STALE = 10; // seconds: the first answer waits for the model, and nobody wants it any more

/** The last WINDOW milliseconds as a file of its own: pieces of one recording could not be read. */
function windowOf(stream) {
  return new Promise((done) => {
    const pieces = [];
    const recorder = new MediaRecorder(stream);
    recorder.ondataavailable = (event) => pieces.push(event.data);
    recorder.onstop = () => {
      const ending = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
      const file = new File(pieces, `live.${ending}`, { type: recorder.mimeType });
      done({ file, ended: performance.now() });
    };
    recorder.start();
    setTimeout(() => { if (recorder.state !== "inactive") recorder.stop(); }, WINDOW);
  });
}

async function live(button) {
  if (turn.button === button) {
    if (turn.leave) turn.leave();
    return;
  }
  const mine = newTurn({ button });
  const size = { width: 480, height: 360, frameRate: 15 };
  const stream = await openDevice({ video: size, audio: true }, mine);
  if (!stream) return;
  forget();
  mirror(stream);
  button.textContent = "Stop";
  button.classList.add("on");
  get("go").disabled = true;
  get("chosen").textContent = "Live: the model is being loaded.";
  let busy = false;
  let waiting = null; // only the newest window is worth an answer
  const end = new AbortController();
  const stop = make("button", "Stop live"); // beside the answer, which on a phone is far below
  stop.type = "button";
  stop.onclick = () => mine.leave();
  for (const track of stream.getTracks()) { // a camera is pulled out
    track.onended = () => { mine.leave(); fail("The camera or the microphone is gone."); };
  }
  const timer = setInterval(begin, EVERY);
  begin();

  async function begin() {
    const taken = await windowOf(stream);
    if (end.signal.aborted || taken.file.size < SMALLEST) return;
    waiting = taken;
    if (!busy) next();
  }

  async function next() {
    busy = true;
    while (waiting && !end.signal.aborted) {
      const { file, ended } = waiting;
      waiting = null;
      const form = formOf(file, newTicket());
      form.set("quick", "yes");
      form.delete("text"); // a sentence that was typed is not said again every second
      try {
        const found = await send(form, end.signal);
        const late = (performance.now() - ended) / 1000;
        if (late > STALE) continue;
        if (!found.error) {
          const delay = late.toFixed(1);
          get("chosen").textContent = "Live";
          found.title = `live: the last ${WINDOW / 1000} s`;
          showFound(found, offerOf(), null);
          get("which").textContent = `${found.title}; this answer came ${delay} s after them`;
          get("which").dataset.delay = delay;
          if (!stop.isConnected) {
            get("player").append(get("video"), stop);
            get("video").play().catch(() => {}); // it rests when it is moved
            get("head").scrollIntoView({ block: "start" });
          }
        } else {
          const told = `Live. ${found.error}`;
          if (get("chosen").textContent !== told) get("chosen").textContent = told; // read out once
          if (answered) get("which").textContent = "live: the last answer that there was";
        }
      } catch (error) {
        if (error.name !== "AbortError") get("chosen").textContent = "The server does not answer.";
      }
    }
    busy = false;
  }

  mine.end = () => {
    clearInterval(timer);
    end.abort();
    close(stream);
    stop.remove();
    forget();
    get("go").disabled = false;
    button.textContent = "Live";
    button.classList.remove("on");
  };
  mine.leave = () => {
    newTurn();
    button.focus();
  };
}
