"""The page of `prompt click`: no library, nothing loaded from elsewhere."""

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>AUSM: click on an object</title>
<style>
  body { margin: 0; font: 15px/1.4 system-ui, sans-serif; background: #181a1f; color: #e8e8e8; display: flex; }
  #left { flex: 1; min-width: 0; padding: 12px; } #right { width: 260px; padding: 12px; }
  #view { position: relative; line-height: 0; } canvas { width: 100%; cursor: crosshair; background: #000; }
  button, input { font: inherit; padding: 4px 10px; margin: 2px; } button { cursor: pointer; }
  li { display: flex; justify-content: space-between; gap: 8px; align-items: center; } ul { padding: 0; }
  #message { min-height: 1.4em; } .bad { color: #ff8a80; } small { color: #a0a0a0; }
</style>
<div id="left"><div id="view"><canvas id="canvas"></canvas></div>
  <p id="message">waiting for images ...</p></div>
<div id="right">
  <p><input id="name" placeholder="name (optional)" size="14" aria-label="name">
  <button id="send">Show it</button> <button id="clear">Clear</button></p>
  <p><small>Left click: on the object. Right click: not on it. Drag: a box. While points or a box stand,
  the image is held.</small></p>
  <h3>Objects</h3><ul id="objects"></ul>
  <p><button id="reset">Reset all</button></p>
</div>
<script>
const canvas = document.getElementById("canvas"), pen = canvas.getContext("2d"), image = new Image();
let points = [], box = null, drag = null, again = 0, stamp = "0", shown = "0", told = "";
const $ = id => document.getElementById(id);
function say(text, bad) { $("message").textContent = text; $("message").className = bad ? "bad" : ""; }
function draw() {
  if (!image.naturalWidth) return;
  canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
  pen.drawImage(image, 0, 0);
  pen.lineWidth = Math.max(2, canvas.width / 300);
  for (const [x, y, label] of points) {
    pen.beginPath(); pen.arc(x, y, canvas.width / 120, 0, 7);
    pen.fillStyle = label ? "#00e676" : "#ff5252"; pen.fill(); pen.strokeStyle = "#fff"; pen.stroke();
  }
  if (box) { pen.strokeStyle = "#00e676"; pen.strokeRect(...box); }
}
async function frame() {
  if (!points.length && !box && !drag) {
    try {
      const answer = await fetch("/frame.jpg");
      if (answer.status === 200) {
        stamp = answer.headers.get("X-Stamp");
        const url = URL.createObjectURL(await answer.blob());
        await new Promise(done => { image.onload = image.onerror = done; image.src = url; });
        URL.revokeObjectURL(url);
        if (shown === "0") say("click on an object");
        shown = stamp; draw();
      }
    } catch (error) { say("the server is gone", true); }
  }
  setTimeout(frame, 100);
}
async function post(path, data) {
  try {
    const answer = await fetch(path, { method: "POST", headers: { "X-Ausm": "1" }, body: JSON.stringify(data) });
    const result = await answer.json();
    say(result.message, !result.ok); list(); return result;
  } catch (error) { say(String(error), true); }
}
async function list() {
  try {
    const result = await (await fetch("/objects")).json();
    if (!result.ok) say(told = result.message, true);
    else if (told) { if ($("message").textContent === told) say(""); told = ""; }
    $("objects").replaceChildren(...(result.objects || []).map(object => {
      const item = document.createElement("li"), text = document.createElement("span");
      text.textContent = object.id + " " + object.name + " (" + object.state + ")";
      const fix = document.createElement("button"), drop = document.createElement("button");
      fix.textContent = again === object.id ? "correcting" : "correct"; drop.textContent = "remove";
      fix.onclick = () => { again = again === object.id ? 0 : object.id; list(); };
      drop.onclick = () => post("/remove", { track_ids: [object.id] });
      item.append(text, fix, drop); return item;
    }));
  } catch (error) { /* said by frame() */ }
}
function at(event) {
  const r = canvas.getBoundingClientRect(), k = canvas.width / r.width;
  const clip = (v, n) => Math.max(0, Math.min(n - 1, Math.floor(v)));
  return [clip((event.clientX - r.left) * k, canvas.width), clip((event.clientY - r.top) * k, canvas.height)];
}
canvas.onmousedown = event => { if (event.button === 0 && shown !== "0") drag = at(event); };
canvas.onmousemove = event => {
  if (!drag) return;
  const [x, y] = at(event), [a, b] = drag;
  if (Math.hypot(x - a, y - b) > canvas.width / 100) {
    box = [Math.min(a, x), Math.min(b, y), Math.abs(x - a), Math.abs(y - b)]; points = []; draw();
  }
};
canvas.onmouseup = event => {
  if (!drag) return;
  const start = drag; drag = null;
  if (!box) { points.push([...start, 1]); draw(); }
};
canvas.oncontextmenu = event => {
  event.preventDefault();
  if (shown !== "0") { box = null; points.push([...at(event), 0]); draw(); }
};
function clear() { points = []; box = null; draw(); }
$("clear").onclick = clear;
$("send").onclick = async () => {
  if (!points.length && !box) return say("click on an object first", true);
  const shape = box ? { box } : { points };
  const result = await post("/prompt", { ...shape, name: $("name").value, track_id: again, stamp: shown });
  if (result && result.ok) { clear(); again = 0; $("name").value = ""; list(); }
};
$("reset").onclick = () => post("/reset", {});
frame(); list(); setInterval(list, 2000);
</script></html>
"""
