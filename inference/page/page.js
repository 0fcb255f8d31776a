"use strict";
const get = (id) => document.getElementById(id);
let about = null;
let clip = null; // a File, a Blob, or null
let example = "";
let recorder = null;

function show(id, visible) { get(id).hidden = !visible; }

function fail(message) {
  get("error").textContent = message;
  show("error", true);
  show("found", false);
  show("hint", false);
  window.scrollTo(0, 0);
}

function choose(file, url, name, fromExample = "") {
  clip = file;
  example = fromExample;
  get("text").value = ""; // the words of the clip before
  get("chosen").textContent = name;
  const preview = get("preview");
  if (preview.src.startsWith("blob:")) URL.revokeObjectURL(preview.src);
  preview.srcObject = null;
  preview.src = url;
  show("preview", true);
  show("error", false);
}

function take(file) {
  if (!file) return;
  if (file.size > about.megabytes * 1e6) {
    const size = (file.size / 1e6).toFixed(1);
    fail(`${file.name} has ${size} MB; the limit is ${about.megabytes} MB.`);
    return;
  }
  choose(file, URL.createObjectURL(file), file.name);
}

async function record(button, wanted, name) {
  if (recorder) { recorder.stop(); return; }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    fail(`The browser gives no ${wanted.video ? "camera" : "microphone"}: ${error.message}`);
    return;
  }
  const label = button.textContent;
  const pieces = [];
  recorder = new MediaRecorder(stream);
  recorder.ondataavailable = (event) => pieces.push(event.data);
  recorder.onstop = () => {
    stream.getTracks().forEach((track) => track.stop());
    const ending = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
    recorder = null;
    button.textContent = label;
    button.classList.remove("on");
    take(new File(pieces, `${name}.${ending}`, { type: pieces[0].type }));
  };
  recorder.start();
  button.textContent = "Stop recording";
  button.classList.add("on");
  show("preview", true);
  get("preview").srcObject = stream;
  get("preview").muted = true;
  get("preview").play();
  setTimeout(() => { if (recorder) recorder.stop(); }, 1000 * (about.seconds - 1));
}

async function answer(event) {
  event.preventDefault();
  const form = new FormData();
  form.set("model", get("model").value);
  form.set("text", get("text").value);
  if (example) form.set("example", example);
  else if (clip) form.set("clip", clip, clip.name);
  get("go").disabled = true;
  get("go").textContent = "Looking and listening …";
  try {
    const { busy } = await (await fetch("about")).json();
    if (busy) { fail(busy); return; }
    const response = await fetch("answer", { method: "POST", body: form });
    const kind = response.headers.get("Content-Type") || "";
    const found = kind.includes("json") ? await response.json() : { error: await response.text() };
    if (found.error) { fail(found.error); return; }
    get("head").textContent = found.head;
    get("picture").src = `data:image/png;base64,${found.picture}`;
    get("remarks").replaceChildren(...found.remarks.map((text) => {
      const item = document.createElement("li");
      item.textContent = text;
      return item;
    }));
    show("error", false);
    show("hint", false);
    show("found", true);
    window.scrollTo(0, 0);
  } catch (error) {
    fail("The server does not answer: is it still running? A clip that is too large is refused, too.");
  } finally {
    get("go").disabled = false;
    get("go").textContent = "Answer";
  }
}

async function start() {
  about = await (await fetch("about")).json();
  get("limits").textContent = `video or sound, up to ${about.megabytes} MB and ${about.seconds} s`;
  get("model").replaceChildren(...about.models.map((name) => new Option(name)));
  get("text").disabled = !about.words;
  show("no_words", !about.words);
  const row = document.querySelector("#examples .row");
  about.examples.forEach((name, place) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${place + 1}`;
    button.title = name;
    button.onclick = () => choose(null, `example/${encodeURIComponent(name)}`, name, name);
    row.append(button);
  });
  show("examples", about.examples.length > 0);
  get("form").onsubmit = answer;
  get("clip").onchange = (event) => take(event.target.files[0]);
  const drop = get("drop");
  drop.ondragover = (event) => { event.preventDefault(); drop.classList.add("over"); };
  drop.ondragleave = () => drop.classList.remove("over");
  drop.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    take(event.dataTransfer.files[0]);
  };
  get("camera").onclick = (event) => record(event.target, { video: true, audio: true }, "camera");
  get("microphone").onclick = (event) => record(event.target, { audio: true }, "microphone");
  document.body.dataset.ready = "yes";
}

start();
