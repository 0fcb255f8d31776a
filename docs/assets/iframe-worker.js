// Browsers start no worker for a page that is opened from the disk. There the search runs in a
// hidden frame, which takes and sends messages as a worker does.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      document.body.append(this.frame);
      const inside = this.frame.contentWindow;
      window.addEventListener("message", event => {
        if (event.source === inside) {
          this.dispatchEvent(new MessageEvent("message", { data: event.data }));
        }
      });
      this.ready = new Promise(resolve => {
        inside.document.open();
        inside.document.write(
          "<script>var postMessage = data => parent.postMessage(data, '*');" +
          "var importScripts = (...urls) => Promise.all(urls.map(url => new Promise((good, bad) => {" +
          "  const script = document.createElement('script');" +
          "  Object.assign(script, { src: url, onload: good, onerror: bad });" +
          "  document.body.append(script); })));</scr" + "ipt><body>"
        );
        const script = inside.document.createElement("script");
        script.onload = resolve;
        script.src = new URL(url, location.href).href;
        inside.document.body.append(script);
        inside.document.close();
      });
    }

    postMessage(data) {
      this.ready.then(() =>
        this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })));
    }
  };
}
