// The page asks its server for the picture, the mask and the maps of a slice, and draws them. Names are put in as text.
const at = id => document.getElementById(id);
const paper = id => at(id).getContext("2d", { willReadFrequently: true });
const POLL = 200;  // ms between two questions of how far a prediction has come
const OPACITY = 0.45;
const LEAST = 0.001;  // uncertainty that is drawn as the highest, lest what is rounded away look like something

let run;             // what does not change: classes, channels, limits
let open = null;     // {image, name, height, width, slices}
let prediction = null;   // {key, threshold, warnings} of the open image, finished
let threshold = null;    // where the user has moved it; null: the network's own
let maps = null;     // of the slice that is shown: picture, mask at a threshold, probability, uncertainty
let heat;            // the colours of maps, as pixels
const asked = { work: 0, show: 0 };  // what the user asked for: answers to earlier questions are left aside
let complained = null;  // what kind of task the problem that is shown comes from

async function ask(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("The viewer does not answer any more: it was ended, or the connection broke.");
  }
  if (!answer.ok) throw new Error((await answer.json()).error);
  return answer;
}
const json = async (address, options) => (await ask(address, options)).json();
const post = (address, body) => json(address, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
const pause = () => new Promise(resume => setTimeout(resume, POLL));

function complain(kind, error) {
  complained = kind;
  at("problem").textContent = error ? error.message : "";
  at("problem").hidden = !error;
}

// Does what the user asks for unless more of its kind is asked meanwhile; `current()` says whether it still counts.
async function doing(kind, task) {
  const mine = ++asked[kind], current = () => mine === asked[kind];
  if (complained === kind) complain(null);
  try {
    await task(current);
  } catch (error) {
    if (!current()) return;
    complain(kind, error);
    if (kind === "show") return;
    at("progress").hidden = true;
    at("status").textContent = "";
  }
}

const openFile = (name, receive) => doing("work", async current => {
  at("status").textContent = `Opening ${name}`;
  at("download").disabled = true;
  let opened;
  try {
    opened = await receive();
  } catch (error) {
    if (!open || !current()) throw error;
    complain("work", error);
    return predict(current);  // of the image that is still open
  }
  if (!current()) return;
  open = opened;
  prediction = maps = null;
  at("name").textContent = open.name;
  at("warnings").replaceChildren();
  at("slices").hidden = open.slices === null;
  at("slice").max = open.slices ?? 1;
  at("slice").value = Math.ceil((open.slices ?? 1) / 2);
  at("views").hidden = at("hint").hidden = true;  // until they show this image
  doing("show", show);
  await predict(current);
});

// Predicts the open image with the samples and the threshold that are chosen; waits for it.
async function predict(current) {
  at("download").disabled = true;
  at("views").classList.add("old");
  const address = `images/${open.image}/predictions`, wanted = { samples: Number(at("samples").value), threshold };
  const { prediction: key } = await post(address, wanted);
  for (;;) {
    const state = await json(`${address}/${key}`);
    if (!current()) return;
    at("progress").hidden = state.finished;
    at("progress").value = state.done;
    at("status").textContent = state.finished ? "" : `Predicting, ${Math.floor(100 * state.done)}%`;
    if (state.finished) {
      prediction = { key, threshold: wanted.threshold, warnings: state.warnings };
      break;
    }
    await pause();
    if (!current()) return;
  }
  at("warnings").replaceChildren(...prediction.warnings.map(words => {
    const line = document.createElement("p");
    line.className = "warning";
    line.textContent = `Warning. ${words}`;
    return line;
  }));
  at("download").disabled = false;
  await doing("show", show);
}

async function show(current) {
  const { image, height, width } = open, index = at("slice").value - 1, shown = prediction;
  const values = async (kind, plane, Type) => shown &&
    new Type(await (await ask(`images/${image}/predictions/${shown.key}/${kind}/${plane}/${index}`)).arrayBuffer());
  const [picture, mask, probability, uncertainty] = await Promise.all([
    ask(`images/${image}/${index}.png`).then(answer => answer.blob()).then(createImageBitmap),
    values("mask", 0, Uint8Array),
    values("probability", at("channel").value, Float32Array),
    values("uncertainty", at("measure").value, Float32Array),
  ]);
  if (!current()) return;
  maps = { picture, mask, probability, uncertainty, threshold: shown?.threshold };
  for (const id of ["image", "mask", "probability", "uncertainty"]) Object.assign(at(id), { width, height });
  paper("image").drawImage(picture, 0, 0);
  at("views").hidden = at("hint").hidden = false;
  at("views").classList.toggle("old", !shown);
  at("pixel").textContent = "";
  at("slice-number").textContent = open.slices === null ? "" : `${index + 1} of ${open.slices}`;
  drawMask();
  drawMap("probability", probability, 1);
  const highest = (uncertainty ?? []).reduce((most, one) => Math.max(most, one), LEAST);
  drawMap("uncertainty", uncertainty, highest);
  at("highest").textContent = highest.toPrecision(2) + (at("measure").value < run.measures.length ? " nats" : "");
}

// The mask of the slice: the mask's own, or where the threshold has been moved since what reaches it.
const labels = () => threshold === maps.threshold ? maps.mask : maps.probability.map(p => p >= (threshold ?? run.threshold) ? 1 : 0);

function drawMask() {
  const canvas = at("mask"), context = paper("mask");
  at("share").textContent = "";
  if (!maps.mask) return;
  context.drawImage(maps.picture, 0, 0);
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height), found = labels();
  const colours = run.values.map(one => one.colour), numbers = new Uint32Array(colours.length);
  for (let i = 0; i < found.length; i++) {
    const colour = colours[found[i]];
    numbers[found[i]]++;
    if (colour) for (let c = 0; c < 3; c++) pixels.data[4 * i + c] += OPACITY * (colour[c] - pixels.data[4 * i + c]);
  }
  context.putImageData(pixels, 0, 0);
  const counts = new Uint32Array(run.classes.length);
  run.values.forEach(({ classes }, value) => { for (const one of classes) counts[one] += numbers[value]; });
  const percent = [...counts].slice(1).map((count, i) => `${run.classes[i + 1]} ${(100 * count / found.length).toFixed(2)}%`);
  at("share").textContent = `, ${percent.join(", ")}${open.slices === null ? "" : " of the slice"}`;
}

function drawMap(id, values, highest) {
  const context = paper(id);
  if (!values) return;  // setting its size has cleared the canvas
  const pixels = new ImageData(at(id).width, at(id).height), coloured = new Uint32Array(pixels.data.buffer);
  for (let i = 0; i < values.length; i++) coloured[i] = heat[Math.min(255, Math.round(255 * values[i] / highest))];
  context.putImageData(pixels, 0, 0);
}

const download = () => doing("work", async current => {
  if (prediction.threshold !== threshold) await predict(current);
  if (!current()) return;
  const link = document.createElement("a");
  link.href = `images/${open.image}/predictions/${prediction.key}/file`;
  link.download = "";
  link.click();
});

function tellPixel(event) {
  const canvas = event.target, box = canvas.getBoundingClientRect();
  const side = Math.min(box.width / canvas.width, box.height / canvas.height);
  const x = Math.floor((event.clientX - box.left - (box.width - side * canvas.width) / 2) / side);
  const y = Math.floor((event.clientY - box.top - (box.height - side * canvas.height) / 2) / side);
  if (!maps?.mask || x < 0 || y < 0 || x >= canvas.width || y >= canvas.height) return;
  const i = y * canvas.width + x;
  at("pixel").textContent = `Column ${x}, row ${y}: ${run.values[labels()[i]].classes.map(one => run.classes[one]).join(" and ")}, ` +
    `probability ${maps.probability[i].toFixed(3)}, uncertainty ${maps.uncertainty[i].toPrecision(3)}.`;
}

function receiveUpload(files) {
  if (files.length !== 1) return complain("work", new Error("Drop one file at a time."));
  const [file] = files;
  if (file.size > run.most_bytes)
    return complain("work", new Error(`${file.name}: has more than ${run.most_bytes.toLocaleString("en")} bytes; name it on the command line.`));
  at("file").selectedIndex = -1;
  openFile(file.name, () => json(`images?name=${encodeURIComponent(file.name)}`, { method: "POST", body: file }));
}

const redraw = () => open && doing("show", show);
const fill = (id, names) => at(id).replaceChildren(...names.map((name, i) => new Option(name, i)));

function listen() {
  at("file").addEventListener("change", event => {
    const chosen = event.target;
    openFile(chosen.selectedOptions[0].text, () => post(`files/${chosen.value}`, {}));
  });
  at("upload").addEventListener("change", event => {
    receiveUpload(event.target.files);
    event.target.value = "";
  });
  for (const kind of ["dragenter", "dragover"]) document.addEventListener(kind, event => {
    event.preventDefault();
    at("drop").classList.add("over");
  });
  document.addEventListener("dragleave", event => event.relatedTarget || at("drop").classList.remove("over"));
  document.addEventListener("drop", event => {
    event.preventDefault();
    at("drop").classList.remove("over");
    if (event.dataTransfer.files.length) receiveUpload(event.dataTransfer.files);
  });
  at("slice").addEventListener("input", redraw);
  at("samples").addEventListener("input", event => { at("samples-number").textContent = event.target.value; });
  at("samples").addEventListener("change", () => open && doing("work", async current => {
    await pause();  // the keyboard changes it step by step
    if (current()) await predict(current);
  }));
  at("threshold").addEventListener("input", event => {
    const value = Number(event.target.value);
    threshold = Math.abs(value - run.threshold) < 0.0051 ? null : value;
    at("threshold-number").textContent = threshold ?? run.threshold;
    if (maps?.mask) drawMask();
  });
  for (const id of ["channel", "measure"]) at(id).addEventListener("change", event => {
    at(`${id}-name`).textContent = event.target.selectedOptions[0].text;
    redraw();
  });
  at("download").addEventListener("click", download);
  at("views").addEventListener("mousemove", event => event.target.tagName === "CANVAS" && tellPixel(event));
  document.addEventListener("keydown", event => {
    if (event.key === "Escape") for (const box of at("views").querySelectorAll("input")) box.checked = false;
  });
}

function describeRun() {
  at("run").textContent = run.name;
  document.title = `${run.name}: segdrop view`;
  at("samples").max = run.most_samples;
  at("samples").disabled = run.unsampled !== "";
  at("unsampled").textContent = run.unsampled;
  at("unsampled").hidden = run.unsampled === "";
  at("thresholds").hidden = run.threshold === null;
  at("threshold").value = at("threshold-number").textContent = run.threshold;
  at("channels").hidden = run.channels.length === 1;
  fill("channel", run.channels);
  at("channel").value = run.channels.length - 1;
  fill("measure", [...run.measures.map(name => name.replaceAll("_", " ")), ...run.channels.map(name => `standard deviation of ${name}`)]);
  for (const id of ["channel", "measure"]) at(`${id}-name`).textContent = at(id).selectedOptions[0].text;
  at("listed").hidden = run.files.length === 0;
  fill("file", run.files);
  for (const { classes, colour } of run.values.filter(one => one.colour && one.classes.length === 1)) {
    const entry = document.createElement("span"), patch = document.createElement("i");
    patch.style.background = `rgb(${colour})`;
    entry.append(patch, run.classes[classes[0]]);
    at("legend").append(entry);
  }
}

doing("work", async () => {
  run = await json("run");
  heat = new Uint32Array(Uint8ClampedArray.from(run.heat.flatMap(colour => [...colour, 255])).buffer);
  describeRun();
  listen();
  if (run.files.length) at("file").dispatchEvent(new Event("change"));
});
