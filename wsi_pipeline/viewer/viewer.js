// The page of `wsi-pipeline view`: deep zoom, heatmaps by value, outlines, findings and reviews of one run.
//
// Frames: a position is (x, y) in level-0 px of the slide. A view is its centre and `scale`, level-0 px (along x) per
// CSS px; along y it is `scale * ratio`, so that a slide whose pixels are not square is shown as it is under the
// microscope. Tile (zoom, column, row) covers 256 * 2**zoom level-0 px.
"use strict";

const TILE_PX = 256;
const MOST_TILES = 600; // pictures kept, of 256 x 256
const MOST_VALUES = 96; // tiles of heatmaps kept, of 256 kB
const AT_ONCE = 6; // requests, as many as a browser sends to one server
const COLOURS = {
  // Anchors of matplotlib's maps, all of which rise in lightness and can be read by the colour-blind.
  viridis: ["440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725"],
  cividis: ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "fee838"],
  magma: ["000004", "1d1147", "51127c", "832681", "b73779", "e75263", "fc8961", "fec488", "fcfdbf"],
};
const LAYERS = {
  heatmap: ["h", "Heatmap", true],
  annotation: ["a", "Annotation", true],
  lesions: ["l", "Lesions hit and missed", true],
  detections: ["d", "Detections", false],
  grid: ["g", "Patch grid", false],
  unreadable: ["u", "Unreadable patches", true],
  marks: ["m", "Review marks", true],
};
const VERDICTS = { right: "#1b8455", wrong: "#cf222e", unsure: "#bf8700" };
const $ = (id) => document.getElementById(id);
const base = location.pathname.replace(/[^/]*$/, "");
// Of a page by `view --export`: what the server would answer, by request. Null: the server is asked.
const inside = JSON.parse($("inside")?.textContent ?? "null");

// ------------------------------------------------------------ requests

async function ask(path, options) {
  if (inside) return askInside(path);
  let answer;
  try {
    answer = await fetch(base + path, options);
  } catch {
    throw new Error("the viewer does not answer; is wsi-pipeline view still running?");
  }
  if (!answer.ok) {
    const found = await answer.json().catch(() => ({}));
    throw new Error(found.error ?? `the viewer answered ${answer.status}`);
  }
  return answer;
}

function askInside(path) {
  const found = inside.answers[path];
  if (!found) throw new Error("this page does not hold that; wsi-pipeline view shows the whole run");
  if ("json" in found) return new Response(JSON.stringify(found.json));
  const blob = new Blob([Uint8Array.from(atob(found.deflated ?? found.jpeg), (letter) => letter.charCodeAt(0))]);
  return new Response("deflated" in found ? blob.stream().pipeThrough(new DecompressionStream("deflate")) : blob);
}

const has = (path) => !inside || path in inside.answers;
const pictureUrl = (path) => (inside ? `data:image/jpeg;base64,${inside.answers[path]?.jpeg ?? ""}` : base + path);
const askJson = async (path, options) => (await ask(path, options)).json();
const url = (...parts) => parts.map((part) => encodeURIComponent(part)).join("/");

// What is loaded, the longest unused dropped; few requests at a time, the latest wanted first.
class Loaded {
  constructor(most, load) {
    this.most = this.room = most;
    this.seen = 0; // since `want`
    this.load = load;
    this.kept = new Map();
    this.waiting = new Map();
    this.running = 0;
  }

  get(key) {
    this.seen += 1;
    const found = this.kept.get(key);
    if (found !== undefined) {
      this.kept.delete(key);
      this.kept.set(key, found);
    }
    return found;
  }

  // Replaces what is waiting by what is wanted now, in this order.
  want(keys, done) {
    this.room = Math.max(this.most, 2 * this.seen); // what is seen is not dropped
    this.seen = 0;
    this.waiting.clear();
    for (const key of keys) if (!this.kept.has(key)) this.waiting.set(key, done);
    this.start();
  }

  // What could not be loaded is asked for again.
  forgetProblems() {
    for (const [key, value] of this.kept) if (value?.problem) this.kept.delete(key);
  }

  start() {
    while (this.running < AT_ONCE && this.waiting.size) {
      const [key, done] = this.waiting.entries().next().value;
      this.waiting.delete(key);
      this.kept.set(key, null); // asked for
      this.running += 1;
      this.load(key)
        .catch((problem) => ({ problem: problem.message }))
        .then((value) => {
          this.kept.set(key, value);
          while (this.kept.size > this.room) this.kept.delete(this.kept.keys().next().value);
          this.running -= 1;
          this.start();
          done();
        });
    }
  }
}

const pictures = new Loaded(MOST_TILES, async (key) => {
  const answer = await ask(`tile/${key}`);
  return createImageBitmap(await answer.blob());
});
const values = new Loaded(MOST_VALUES, async (key) => {
  const answer = await ask(`map/${key}`);
  return { values: new Float32Array(await answer.arrayBuffer()), style: "", canvas: null };
});

// ------------------------------------------------------------ colours

function makeRamp(name) {
  const anchors = COLOURS[name].map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const ramp = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i += 1) {
    const place = (i / 255) * (anchors.length - 1);
    const first = Math.min(Math.floor(place), anchors.length - 2);
    for (let c = 0; c < 3; c += 1) {
      ramp[3 * i + c] = anchors[first][c] + (place - first) * (anchors[first + 1][c] - anchors[first][c]);
    }
  }
  return ramp;
}

const ramps = Object.fromEntries(Object.keys(COLOURS).map((name) => [name, makeRamp(name)]));

// Draws values as colours; what is below the threshold, or was not scored, is clear.
function colour(tile, style) {
  if (tile.style === style.key) return tile.canvas;
  const canvas = tile.canvas ?? new OffscreenCanvas(TILE_PX, TILE_PX);
  const image = new ImageData(TILE_PX, TILE_PX);
  const pixels = image.data;
  const ramp = ramps[style.colours];
  const factor = 255 / (style.high - style.low || 1);
  for (let i = 0; i < tile.values.length; i += 1) {
    const value = tile.values[i];
    if (!(value >= style.threshold)) continue;
    const at = 3 * Math.max(0, Math.min(255, Math.round((value - style.low) * factor)));
    pixels[4 * i] = ramp[at];
    pixels[4 * i + 1] = ramp[at + 1];
    pixels[4 * i + 2] = ramp[at + 2];
    pixels[4 * i + 3] = 255;
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
  tile.canvas = canvas;
  tile.style = style.key;
  return canvas;
}

// ------------------------------------------------------------ state

const run = { name: "", models: [], slides: [] };
const state = {
  id: "", // of the slide chosen, also where it cannot be shown
  isOpening: false, // until the server has described it
  slide: null, // as the server describes it
  view: { x: 0, y: 0, scale: 1 },
  models: ["", ""],
  map: "scores",
  compare: false,
  opacity: 0.5,
  threshold: 0,
  colours: "viridis",
  layers: Object.fromEntries(Object.entries(LAYERS).map(([name, [, , on]]) => [name, on])),
  errorAt: -1, // which of the slide's errors was shown last
  found: null, // what is at the place clicked
  region: null, // points of a region being marked
};
const known = { outlines: null, patches: {}, findings: {}, maps: {}, review: null }; // of the slide shown
const panes = [];
let problemTimer = 0;

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
  clearTimeout(problemTimer);
}

const ratio = () => (state.slide?.mpp ? state.slide.mpp[0] / state.slide.mpp[1] : 1);
const model = (pane) => state.models[pane.number];
const threshold = (name) => run.models.find((one) => one.name === name).threshold;

function writeLink() {
  if (!state.slide) return;
  const { x, y, scale } = state.view;
  const parts = new URLSearchParams({
    slide: state.slide.id, x: x.toFixed(1), y: y.toFixed(1), scale: Number(scale.toPrecision(5)),
    model: state.models[0], beside: state.compare ? state.models[1] : "", map: state.map, opacity: state.opacity,
    threshold: state.threshold, colours: state.colours,
    layers: Object.keys(LAYERS).filter((name) => state.layers[name]).join(","),
  });
  history.replaceState(null, "", `#${parts}`);
}

function readLink() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const names = run.models.map((one) => one.name);
  const scored = names.filter((name) => run.slides.some((slide) => slide.scores[name] !== null));
  const [first, second] = [...scored, ...names.filter((name) => !scored.includes(name))];
  state.models[0] = names.includes(parts.get("model")) ? parts.get("model") : (first ?? "");
  state.compare = names.includes(parts.get("beside"));
  state.models[1] = state.compare ? parts.get("beside") : (second ?? first ?? "");
  state.map = parts.get("map") ?? "scores";
  for (const name of ["opacity", "threshold"]) {
    const number = Number(parts.get(name));
    if (parts.has(name) && number >= 0 && number <= 1) state[name] = number;
  }
  if (parts.get("colours") in COLOURS) state.colours = parts.get("colours");
  if (parts.has("layers")) {
    const on = parts.get("layers").split(",");
    for (const name in LAYERS) state.layers[name] = on.includes(name);
  }
  const [x, y, scale] = ["x", "y", "scale"].map((name) => Number(parts.get(name)));
  const view = scale > 0 && Number.isFinite(x + y + scale) ? { x, y, scale } : null;
  return { slide: parts.get("slide"), view, look: view && parts.has("look") };
}

// ------------------------------------------------------------ panes

class Pane {
  constructor(number) {
    this.number = number;
    this.element = document.createElement("div");
    this.element.className = "pane";
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("aria-label", "Slide");
    this.caption = document.createElement("div");
    this.caption.className = "caption";
    this.element.append(this.canvas, this.caption);
    $("panes").append(this.element);
    this.pointers = new Map();
    this.listen();
    new ResizeObserver(() => draw()).observe(this.element);
  }

  get size() {
    return [this.element.clientWidth, this.element.clientHeight];
  }

  toSlide(px, py) {
    const [width, height] = this.size;
    const { x, y, scale } = state.view;
    return [x + (px - width / 2) * scale, y + (py - height / 2) * scale * ratio()];
  }

  toScreen(x, y) {
    const [width, height] = this.size;
    const { view } = state;
    return [(x - view.x) / view.scale + width / 2, (y - view.y) / (view.scale * ratio()) + height / 2];
  }

  listen() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      canvas.focus({ preventScroll: true });
      this.pointers.set(event.pointerId, place(event));
      this.moved = this.pointers.size > 1;
      this.start = place(event);
      if (event.shiftKey && !inside) state.region = { from: this.toSlide(...place(event)), to: this.toSlide(...place(event)) };
    });
    canvas.addEventListener("pointermove", (event) => {
      const now = place(event);
      showPlace(this.toSlide(...now));
      const before = this.pointers.get(event.pointerId);
      if (!before) return;
      this.moved ||= Math.hypot(now[0] - this.start[0], now[1] - this.start[1]) > 4;
      if (state.region?.from && event.shiftKey) {
        state.region.to = this.toSlide(...now);
      } else if (this.pointers.size === 1 && this.moved) {
        moveBy(before[0] - now[0], before[1] - now[1]);
      } else if (this.pointers.size === 2) {
        const [other] = [...this.pointers].filter(([id]) => id !== event.pointerId).map(([, at]) => at);
        const distance = (at) => Math.hypot(at[0] - other[0], at[1] - other[1]) || 1;
        const middle = [(now[0] + other[0]) / 2, (now[1] + other[1]) / 2];
        zoomAt(this, middle, distance(before) / distance(now));
        moveBy((before[0] - now[0]) / 2, (before[1] - now[1]) / 2);
      }
      this.pointers.set(event.pointerId, now);
      draw();
    });
    const end = (event) => {
      const was = this.pointers.delete(event.pointerId);
      if (!was || this.pointers.size) return;
      if (state.region?.from && this.moved) return finishRegion();
      state.region = null;
      if (!this.moved && event.type === "pointerup") lookAt(this.toSlide(...place(event)), this);
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomAt(this, place(event), Math.exp(Math.max(-1, Math.min(1, event.deltaY / (event.deltaMode ? 8 : 300)))));
    }, { passive: false });
    canvas.addEventListener("dblclick", (event) => zoomAt(this, place(event), event.shiftKey ? 2 : 0.5));
  }

  draw() {
    const sharp = window.devicePixelRatio || 1;
    const [width, height] = this.size;
    const [w, h] = [Math.round(width * sharp), Math.round(height * sharp)];
    if (this.canvas.width !== w || this.canvas.height !== h) Object.assign(this.canvas, { width: w, height: h });
    const context = this.canvas.getContext("2d");
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.clearRect(0, 0, w, h);
    const wanted = { pictures: [], values: [] };
    if (!state.slide || !width) return wanted;
    const scale = state.view.scale / sharp; // level-0 px per px of the canvas
    // From here, the canvas has level-0 coordinates.
    const [left, top] = this.toSlide(0, 0);
    context.setTransform(1 / scale, 0, 0, 1 / (scale * ratio()), -left / scale, -top / (scale * ratio()));
    const [right, bottom] = this.toSlide(width, height);
    const shown = { left, top, right, bottom, scale };
    context.save();
    context.beginPath();
    context.rect(0, 0, ...state.slide.size);
    context.clip();
    context.fillStyle = "#fff";
    context.fillRect(0, 0, ...state.slide.size);
    this.drawPixels(context, shown, wanted.pictures);
    if (state.layers.heatmap) this.drawMap(context, shown, wanted.values);
    this.drawPatches(context, shown);
    context.restore();
    this.drawShapes(context, shown);
    context.setTransform(sharp, 0, 0, sharp, 0, 0);
    this.drawBar(context, width, height);
    this.caption.textContent = state.compare ? model(this) : "";
    this.caption.hidden = !state.compare;
    return wanted;
  }

  drawPixels(context, shown, wanted) {
    const { slide } = state;
    const zoom = Math.max(0, Math.min(slide.n_zooms - 1, Math.round(Math.log2(shown.scale * Math.min(1, ratio())))));
    context.imageSmoothingEnabled = shown.scale > 0.5; // enlarged pixels are shown as they are
    const tiles = listTiles(shown, TILE_PX * 2 ** zoom, slide.size);
    for (const [column, row] of tiles) {
      let isFinest = true; // of those that there are
      for (let up = 0; zoom + up < slide.n_zooms; up += 1) {
        const key = url(slide.id, zoom + up, column >> up, row >> up);
        if (!has(`tile/${key}`)) continue;
        const tile = pictures.get(key);
        if (isFinest && tile === undefined) wanted.push(key);
        if (isFinest && tile?.problem) {
          hatch(context, [column, row].map((at) => at * TILE_PX * 2 ** zoom), TILE_PX * 2 ** zoom, shown.scale);
          complain(tile.problem);
          break;
        }
        isFinest = false;
        if (!(tile instanceof ImageBitmap)) continue;
        // The part of the larger tile that lies here.
        const side = TILE_PX / 2 ** up;
        const [sx, sy] = [(column % 2 ** up) * side, (row % 2 ** up) * side];
        const [x, y, l0] = [column * TILE_PX * 2 ** zoom, row * TILE_PX * 2 ** zoom, TILE_PX * 2 ** zoom];
        context.drawImage(tile, sx, sy, side, side, x, y, l0 + 0.5 * shown.scale, l0 + 0.5 * shown.scale);
        break;
      }
    }
    const last = url(slide.id, slide.n_zooms - 1, 0, 0);
    if (pictures.get(last) === undefined) wanted.unshift(last); // something to show at once
  }

  drawMap(context, shown, wanted) {
    const map = known.maps[mapKey(model(this))];
    if (!map?.levels) return;
    const style = styleOf(map);
    const finest = Math.log2(shown.scale / Math.max(...map.pixel_l0));
    const level = Math.max(0, Math.min(map.levels.length - 1, Math.floor(finest)));
    const pixel = map.pixel_l0.map((side) => side * 2 ** level);
    context.globalAlpha = state.opacity;
    context.imageSmoothingEnabled = false; // pixels of a heatmap are values, not a picture
    const sides = pixel.map((side) => side * TILE_PX);
    const extent = map.levels[level].map((n, axis) => n * pixel[axis]);
    for (const [column, row] of listTiles(shown, sides, extent)) {
      const key = url(state.slide.id, model(this), mapName(model(this)), level, column, row);
      if (!has(`map/${key}`)) continue; // nothing was scored there
      const tile = values.get(key);
      if (tile === undefined) wanted.push(key);
      if (tile?.problem) complain(tile.problem);
      if (!tile?.values) continue;
      context.drawImage(colour(tile, style), column * sides[0], row * sides[1], ...sides);
    }
    context.globalAlpha = 1;
  }

  drawPatches(context, shown) {
    const patches = known.patches[model(this)];
    const side = state.slide.patch_l0;
    if (!patches || !side || !(state.layers.grid || state.layers.unreadable)) return;
    const isSeen = (x, y) => x < shown.right && y < shown.bottom && x + side[0] > shown.left && y + side[1] > shown.top;
    const line = 1.2 * shown.scale;
    for (let i = 0; i < patches.n; i += 1) {
      const [x, y] = [patches.x[i], patches.y[i]];
      if (!isSeen(x, y)) continue;
      if (state.layers.unreadable && patches.unreadable[i]) hatch(context, [x, y], side, shown.scale);
      if (!state.layers.grid || side[0] < 5 * shown.scale) continue;
      context.lineWidth = patches.label[i] === 1 ? 2 * line : line;
      context.strokeStyle = { 1: "#cf222e", 0: "#1f6fb4" }[patches.label[i]] ?? "#5b6372";
      context.strokeRect(x + line, y + line, side[0] - 2 * line, side[1] - 2 * line);
    }
  }

  drawShapes(context, shown) {
    const px = shown.scale * (window.devicePixelRatio || 1); // of the screen, in level-0 px
    if (state.layers.annotation && known.outlines) {
      for (const [width, stroke] of [[4, "#ffffffb0"], [2, "#111111"]]) {
        context.lineWidth = width * px;
        context.strokeStyle = stroke;
        for (const lesion of known.outlines) context.stroke(lesion);
      }
    }
    const findings = known.findings[model(this)];
    if (state.layers.detections) {
      for (const one of findings?.detections ?? []) {
        if (one.score >= state.threshold) sign(context, one.x + 0.5, one.y + 0.5, 6 * px, "diamond", "#ffb000");
      }
    }
    if (state.layers.lesions) {
      for (const one of findings?.lesions ?? []) {
        if (one.x === null) continue; // its place is not known
        const [shape, paint] = one.status === "missed" ? ["cross", "#d62828"] : ["ring", "#1a7f37"];
        sign(context, one.x, one.y, 11 * px, shape, paint);
      }
    }
    if (state.layers.marks) {
      for (const mark of listMarks()) {
        context.lineWidth = 3 * px;
        context.strokeStyle = VERDICTS[mark.properties?.classification?.name] ?? "#666";
        context.stroke(makePath(ringsOf(mark.geometry)));
      }
    }
    const box = state.region ? boxOf(state.region) : state.found?.box;
    if (box) {
      context.lineWidth = 2 * px;
      context.strokeStyle = "#000";
      context.strokeRect(...box);
      context.setLineDash([4 * px, 4 * px]);
      context.strokeStyle = "#fff";
      context.strokeRect(...box);
      context.setLineDash([]);
    }
  }

  drawBar(context, width, height) {
    const mpp = state.slide.mpp?.[0];
    if (!mpp) return;
    const um = state.view.scale * mpp; // per CSS px
    const length = niceLength(Math.min(240, width / 3) * um);
    const px = length / um;
    context.fillStyle = "#ffffffd9";
    context.fillRect(8, height - 34, px + 16, 28);
    context.fillStyle = "#111";
    context.fillRect(16, height - 14, px, 4);
    context.font = "12px system-ui, sans-serif";
    context.fillText(length >= 1000 ? `${length / 1000} mm` : `${length} µm`, 16, height - 19);
    this.element.dataset.barUm = length;
    this.element.dataset.barPx = px;
  }
}

function niceLength(most) {
  const power = 10 ** Math.floor(Math.log10(most));
  return Math.max(...[1, 2, 5].map((step) => step * power).filter((length) => length <= most));
}

// Tiles that are seen, those in the middle first.
function listTiles(shown, side, extent) {
  const [across, down] = Array.isArray(side) ? side : [side, side];
  const clamp = (value, most) => Math.max(0, Math.min(most, value));
  const first = [clamp(Math.floor(shown.left / across), 1e9), clamp(Math.floor(shown.top / down), 1e9)];
  const last = [
    Math.min(Math.ceil(extent[0] / across), Math.ceil(shown.right / across)) - 1,
    Math.min(Math.ceil(extent[1] / down), Math.ceil(shown.bottom / down)) - 1,
  ];
  const tiles = [];
  for (let row = first[1]; row <= last[1]; row += 1) for (let column = first[0]; column <= last[0]; column += 1) tiles.push([column, row]);
  const middle = [(shown.left + shown.right) / 2 / across - 0.5, (shown.top + shown.bottom) / 2 / down - 0.5];
  const far = ([column, row]) => Math.hypot(column - middle[0], row - middle[1]);
  return tiles.sort((a, b) => far(a) - far(b));
}

function hatch(context, [x, y], side, scale) {
  const [width, height] = Array.isArray(side) ? side : [side, side];
  context.save();
  context.beginPath();
  context.rect(x, y, width, height);
  context.clip();
  context.fillStyle = "#d0d3d9c0";
  context.fillRect(x, y, width, height);
  context.strokeStyle = "#5b6372";
  context.lineWidth = scale;
  context.beginPath();
  for (let at = -height; at < width; at += Math.max(8 * scale, width / 12)) {
    context.moveTo(x + at, y + height);
    context.lineTo(x + at + height, y);
  }
  context.stroke();
  context.restore();
}

function sign(context, x, y, r, shape, paint) {
  const path = new Path2D();
  if (shape === "ring") path.ellipse(x, y, r, r * ratio(), 0, 0, 2 * Math.PI);
  if (shape === "cross") {
    path.moveTo(x - r, y - r * ratio());
    path.lineTo(x + r, y + r * ratio());
    path.moveTo(x - r, y + r * ratio());
    path.lineTo(x + r, y - r * ratio());
  }
  if (shape === "diamond") {
    path.moveTo(x, y - r * ratio());
    for (const [dx, dy] of [[r, 0], [0, r], [-r, 0]]) path.lineTo(x + dx, y + dy * ratio());
    path.closePath();
  }
  for (const [width, stroke] of [[r / 2, "#fff"], [r / 4, paint]]) {
    context.lineWidth = width;
    context.strokeStyle = stroke;
    context.stroke(path);
  }
}

function makePath(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    ring.forEach(([x, y], i) => (i ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
}

const isRing = (ring) => Array.isArray(ring) && ring.every((at) => Array.isArray(at) && at.slice(0, 2).every(Number.isFinite));
// Rings of the polygons of a GeoJSON geometry; QuPath's lines and points have none.
function ringsOf(geometry) {
  const parts = { Polygon: [geometry?.coordinates], MultiPolygon: geometry?.coordinates }[geometry?.type] ?? [];
  if (geometry?.type === "GeometryCollection") return (geometry.geometries ?? []).flatMap(ringsOf);
  return (Array.isArray(parts) ? parts : []).flat().filter(isRing);
}
const listMarks = () => (known.review?.features ?? []).filter((one) => one && typeof one === "object");

const boxOf = ({ from, to }) => [
  Math.min(from[0], to[0]), Math.min(from[1], to[1]), Math.abs(to[0] - from[0]), Math.abs(to[1] - from[1]),
];
const mapName = (name) => {
  const names = state.slide?.maps?.[name] ?? [];
  return names.includes(state.map) ? state.map : names[0];
};
const mapKey = (name) => `${name}/${mapName(name)}`;

// Scores have one scale, from 0 to 1, on all slides; other maps have their own.
function styleOf(map) {
  const isScore = map.low >= 0 && map.high <= 1;
  const [low, high] = isScore ? [0, 1] : [map.low, map.high];
  const hidden = state.threshold > 0 ? low + state.threshold * (high - low) : -Infinity;
  return { low, high, threshold: hidden, colours: state.colours, key: `${low} ${high} ${hidden} ${state.colours}` };
}

let isDue = false;
function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    const wanted = panes.map((pane) => pane.draw());
    pictures.want(new Set(wanted.flatMap((one) => one?.pictures ?? [])), draw);
    values.want(new Set(wanted.flatMap((one) => one?.values ?? [])), draw);
    document.body.dataset.busy = pictures.running + values.running;
    thumbnails.start();
    clearTimeout(draw.timer);
    draw.timer = setTimeout(writeLink, 200);
  });
}

// ------------------------------------------------------------ moving

function limitView() {
  const { view, slide } = state;
  const [width, height] = panes[0].size;
  const whole = Math.max(slide.size[0] / width, slide.size[1] / ratio() / height) * 1.05;
  view.scale = Math.max(1 / 32, Math.min(Math.max(whole, 1) * 2, view.scale));
  view.x = Math.max(0, Math.min(slide.size[0], view.x));
  view.y = Math.max(0, Math.min(slide.size[1], view.y));
}

function moveBy(px, py) {
  state.view.x += px * state.view.scale;
  state.view.y += py * state.view.scale * ratio();
  limitView();
  draw();
}

function zoomAt(pane, [px, py], factor) {
  const before = pane.toSlide(px, py);
  state.view.scale *= factor;
  limitView();
  const after = pane.toSlide(px, py);
  state.view.x += before[0] - after[0];
  state.view.y += before[1] - after[1];
  limitView();
  draw();
}

function showWhole() {
  const { slide } = state;
  const [width, height] = panes[0].size;
  state.view = {
    x: slide.size[0] / 2, y: slide.size[1] / 2,
    scale: Math.max(slide.size[0] / width, slide.size[1] / ratio() / height) * 1.05,
  };
  draw();
}

function goTo(x, y, scale) {
  Object.assign(state.view, { x, y });
  if (scale) state.view.scale = scale;
  limitView();
  draw();
}

function showPlace([x, y]) {
  const mpp = state.slide?.mpp;
  const um = mpp ? `${Math.round(x * mpp[0])}, ${Math.round(y * mpp[1])} µm · ` : "";
  $("place").textContent = `${um}${Math.floor(x)}, ${Math.floor(y)} px`;
}

// ------------------------------------------------------------ slides

function sortSlides() {
  const by = $("sort").value;
  const text = $("filter").value.trim().toLowerCase();
  const name = state.models[0];
  const score = (slide) => slide.scores[name] ?? -1;
  const error = (slide) => (slide.label === null || score(slide) < 0 ? -1 : Math.abs(slide.label - score(slide)));
  const keys = { score: (a, b) => score(b) - score(a), error: (a, b) => error(b) - error(a) };
  keys.name = (a, b) => a.id.localeCompare(b.id, "en", { numeric: true });
  const slides = run.slides.filter((slide) => slide.id.toLowerCase().includes(text));
  return by in keys ? slides.sort(keys[by]) : slides;
}

// Pictures of the list that are seen, two at a time, while the slide itself waits for nothing: each may have to open
// a slide, and a browser sends few requests at once.
const thumbnails = {
  waiting: new Set(),
  running: 0,
  seen: new IntersectionObserver((entries) => {
    for (const one of entries) thumbnails.waiting[one.isIntersecting ? "add" : "delete"](one.target);
    thumbnails.start();
  }),
  start() {
    while (thumbnails.running < 2 && thumbnails.waiting.size && !isAwaited()) {
      const picture = thumbnails.waiting.values().next().value;
      thumbnails.waiting.delete(picture);
      thumbnails.seen.unobserve(picture);
      thumbnails.running += 1;
      const end = () => { thumbnails.running -= 1; thumbnails.start(); };
      picture.onload = end;
      picture.onerror = () => { picture.style.visibility = "hidden"; end(); };
      picture.src = pictureUrl(url("thumbnail", picture.closest("button").dataset.id));
    }
  },
};
const isAwaited = () => state.isOpening || pictures.running + pictures.waiting.size + values.running > 0;

function listSlides() {
  const name = state.models[0];
  thumbnails.seen.disconnect();
  thumbnails.waiting.clear();
  const items = sortSlides().map((slide) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.id = slide.id;
    const picture = document.createElement("img");
    picture.alt = "";
    thumbnails.seen.observe(picture);
    const text = document.createElement("span");
    const title = document.createElement("span");
    title.className = "name";
    title.textContent = slide.id;
    const facts = document.createElement("span");
    facts.className = "soft";
    const label = { 0: "normal", 1: "tumour" }[slide.label] ?? "no label";
    const score = slide.scores[name];
    const missed = slide.missed[name] ? ` · ${slide.missed[name]} missed` : "";
    facts.textContent = `${label}${slide.split ? `, ${slide.split}` : ""}${score === null || score === undefined ? "" : ` · ${score.toFixed(3)}`}${missed}${slide.is_there ? "" : " · file missing"}`;
    text.append(title, document.createElement("br"), facts);
    button.append(picture, text);
    button.addEventListener("click", () => openSlide(slide.id));
    const item = document.createElement("li");
    item.append(button);
    return item;
  });
  $("list").replaceChildren(...items);
  markChosen();
}

function markChosen() {
  $("list").querySelector("[aria-current]")?.removeAttribute("aria-current");
  const chosen = $("list").querySelector(`[data-id="${CSS.escape(state.id)}"]`);
  chosen?.setAttribute("aria-current", "true");
  chosen?.scrollIntoView({ block: "nearest" });
}

async function openSlide(id, view) {
  if (!has(url("api", "slide", id))) {
    const page = `${inside.folder}${encodeURIComponent(id)}.html${view ? location.hash : ""}`;
    return inside.folder ? location.replace(page) : location.assign(page);
  }
  complain("");
  pictures.forgetProblems();
  values.forgetProblems();
  $("slides").classList.remove("open");
  Object.assign(state, { id, slide: null, found: null, region: null, errorAt: -1, isOpening: true });
  Object.assign(known, { outlines: null, patches: {}, findings: {}, maps: {}, review: null });
  document.title = `${id} · ${run.name}`;
  $("title").textContent = id;
  $("place").textContent = "";
  markChosen();
  let problem = "";
  const slide = await askJson(url("api", "slide", id)).catch((error) => { problem = error.message; });
  if (state.id !== id) return; // another one was chosen meanwhile
  Object.assign(state, { slide: slide ?? null, isOpening: false });
  if (slide) {
    if (view) state.view = { ...view };
    else showWhole();
    limitView();
  }
  showFound();
  showReview();
  showMaps();
  draw();
  if (!slide) return complain(problem);
  await Promise.all([readOutlines(id), readReview(id), ...state.models.map(readModel)]);
}

async function readOutlines(id) {
  try {
    const found = await askJson(url("api", "outlines", id));
    if (state.slide?.id === id) known.outlines = found.lesions.map(makePath);
  } catch (problem) {
    complain(problem.message);
  }
  draw();
}

async function readReview(id) {
  try {
    const found = await askJson(url("api", "review", id));
    if (state.id === id) known.review = found;
  } catch (problem) {
    complain(problem.message);
  }
  showReview();
  draw();
}

// What one model found on the slide shown: its map, its patches' scores, its detections and lesions. Without a model,
// the patches.
async function readModel(name) {
  const { slide } = state;
  if (!slide) return;
  const { maps, findings, patches } = known; // of this slide, whichever is shown when the answers come
  const key = mapKey(name);
  const reads = [];
  if (name && !(key in maps)) {
    maps[key] = null;
    if (mapName(name)) {
      reads.push(askJson(url("map", slide.id, name, mapName(name))).then((map) => { maps[key] = map; }));
    }
  }
  if (name && !(name in findings)) {
    findings[name] = null;
    reads.push(askJson(url("api", "model", slide.id, name)).then((found) => { findings[name] = found; }));
  }
  if (!(name in patches)) {
    patches[name] = null;
    reads.push(
      ask(`${url("patches", slide.id)}?model=${encodeURIComponent(name)}`)
        .then((answer) => answer.arrayBuffer())
        .then((bytes) => { patches[name] = readPatches(bytes); }),
    );
  }
  for (const read of await Promise.allSettled(reads)) if (read.reason) complain(read.reason.message);
  if (state.slide !== slide) return;
  showLegend();
  draw();
}

// Records of 16 bytes: x, y int32, score float32, label int8, unreadable uint8.
function readPatches(bytes) {
  const data = new DataView(bytes);
  const n = bytes.byteLength / 16;
  const patches = { n, x: new Int32Array(n), y: new Int32Array(n), score: new Float32Array(n), label: new Int8Array(n), unreadable: new Uint8Array(n) };
  for (let i = 0; i < n; i += 1) {
    patches.x[i] = data.getInt32(16 * i, true);
    patches.y[i] = data.getInt32(16 * i + 4, true);
    patches.score[i] = data.getFloat32(16 * i + 8, true);
    patches.label[i] = data.getInt8(16 * i + 12);
    patches.unreadable[i] = data.getUint8(16 * i + 13);
  }
  return patches;
}

function stepSlide(step) {
  const slides = sortSlides();
  const at = slides.findIndex((slide) => slide.id === state.id);
  if (slides.length) openSlide(slides[(at + step + slides.length) % slides.length].id);
}

// The next false positive or missed lesion of the model, on this slide or on the next that has one.
async function nextError() {
  const name = state.models[0];
  const errors = known.findings[name]?.errors ?? [];
  state.errorAt += 1;
  if (state.errorAt < errors.length) {
    const { x, y } = errors[state.errorAt];
    const side = state.slide.patch_l0 ?? [256, 256];
    goTo(x, y, (4 * side[0]) / panes[0].size[0]);
    return lookAt([x, y], panes[0]);
  }
  state.errorAt = -1;
  const slides = sortSlides();
  const here = slides.findIndex((slide) => slide.id === state.id);
  for (let step = 1; step <= slides.length; step += 1) {
    const slide = slides[(here + step) % slides.length];
    if (!slide.n_errors?.[name]) continue;
    await openSlide(slide.id);
    if (inside) return; // that is another page
    if ((known.findings[name]?.errors ?? []).length) return nextError();
  }
  complain(name ? `no errors of ${name} are listed; wsi-pipeline evaluate lists them` : "this run has no model");
}

// ------------------------------------------------------------ the place clicked

async function lookAt([x, y], pane) {
  const { slide } = state;
  if (!slide || x < 0 || y < 0 || x >= slide.size[0] || y >= slide.size[1]) return;
  try {
    const found = await (inside ? findPlace(slide, x, y) : askJson(`${url("api", "at", slide.id)}?x=${x}&y=${y}`));
    if (state.slide !== slide) return;
    const [patch] = found.patches;
    const side = slide.patch_l0;
    if (found.problems?.length) complain(found.problems.join("; "));
    state.found = { ...found, model: model(pane), box: patch ? [patch.x, patch.y, ...side] : null };
    state.region = null;
  } catch (problem) {
    complain(problem.message);
  }
  showFound();
  showReview();
  if (matchMedia("(max-width: 60rem)").matches) $("side").classList.add("open");
  draw();
}

// What the server says of a place, from what a page by `view --export` holds.
async function findPlace(slide, x, y) {
  await Promise.all(run.models.map((one) => readModel(one.name)));
  const found = { x, y, patches: [], values: {} };
  const [width, height] = slide.patch_l0 ?? [0, 0];
  const some = Object.values(known.patches).find((one) => one);
  for (let i = 0; i < (some?.n ?? 0); i += 1) {
    const from = [x - some.x[i], y - some.y[i]];
    if (!(from[0] >= 0 && from[1] >= 0 && from[0] < width && from[1] < height)) continue;
    const scores = Object.entries(known.patches).map(([name, one]) => [name, one.score[i]]).filter(([, score]) => !Number.isNaN(score));
    found.patches.push({
      row: i, x: some.x[i], y: some.y[i], label: some.label[i], unreadable: some.unreadable[i] > 0, scores: Object.fromEntries(scores),
      far: Math.abs(from[0] - width / 2) + Math.abs(from[1] - height / 2),
    });
  }
  found.patches.sort((a, b) => a.far - b.far);
  for (const [name, maps] of Object.entries(slide.maps)) {
    found.values[name] = {};
    for (const map of maps) found.values[name][map] = await readValue(slide, name, map, [x, y]);
  }
  return found;
}

async function readValue(slide, name, map, at) {
  const { pixel_l0: pixel } = await askJson(url("map", slide.id, name, map));
  const [column, line] = at.map((value, axis) => Math.floor(value / pixel[axis]));
  const path = `map/${url(slide.id, name, map, 0, Math.floor(column / TILE_PX), Math.floor(line / TILE_PX))}`;
  if (!has(path)) return null;
  const tile = new Float32Array(await (await ask(path)).arrayBuffer());
  const value = tile[(line % TILE_PX) * TILE_PX + (column % TILE_PX)];
  return Number.isNaN(value) ? null : value;
}

function row(cells, tag = "td") {
  const line = document.createElement("tr");
  cells.forEach((text, i) => {
    const cell = document.createElement(i ? tag : "th");
    cell.textContent = text;
    line.append(cell);
  });
  return line;
}

const shorten = (value) => (value === null || value === undefined ? "none" : Number(value.toPrecision(6)).toString());

function showFound() {
  const { found, slide } = state;
  if (!found) {
    const hint = document.createElement("p");
    hint.className = "soft";
    hint.textContent = `Click on the slide for its scores and maps.${inside ? "" : " Shift and drag marks a region."}`;
    return $("found").replaceChildren(hint);
  }
  const table = document.createElement("table");
  table.append(row(["position", `${Math.floor(found.x)}, ${Math.floor(found.y)} px`]));
  if (slide.mpp) table.append(row(["", `${(found.x * slide.mpp[0]).toFixed(1)}, ${(found.y * slide.mpp[1]).toFixed(1)} µm`]));
  const [patch] = found.patches;
  if (patch) {
    const label = { 1: "tumour", 0: "normal" }[patch.label] ?? "none";
    table.append(row(["patch", `${patch.row} (${patch.x}, ${patch.y})`]), row(["label", `${label}${patch.unreadable ? ", unreadable" : ""}`]));
    for (const [name, score] of Object.entries(patch.scores)) table.append(row([`score, ${name}`, shorten(score)]));
  }
  for (const [name, maps] of Object.entries(found.values)) {
    for (const [map, value] of Object.entries(maps)) {
      const line = row([map === "scores" ? `heatmap, ${name}` : `${map}, ${name}`, shorten(value)]);
      line.dataset.map = `${name}/${map}`;
      line.dataset.value = value;
      table.append(line);
    }
  }
  const pixels = document.createElement("div");
  pixels.className = "pixels";
  const parts = [table, pixels];
  if (patch && !patch.unreadable && !inside) {
    const picture = document.createElement("img");
    picture.alt = `Patch ${patch.row}`;
    picture.src = base + url("patch", slide.id, patch.row);
    pixels.append(picture);
    const methods = run.models.find((one) => one.name === found.model)?.methods ?? [];
    if (methods.length) parts.push(makeExplain(found.model, methods, patch, pixels));
  }
  $("found").replaceChildren(...parts);
}

function makeExplain(name, methods, patch, pixels) {
  const label = document.createElement("label");
  label.textContent = `Explain ${name} `;
  const select = document.createElement("select");
  select.id = "method";
  select.append(new Option("by…", ""), ...methods.map((method) => new Option(method, method)));
  select.addEventListener("change", async () => {
    if (!select.value) return;
    const waiting = document.createElement("span");
    waiting.className = "soft";
    waiting.textContent = `${select.value} …`;
    pixels.append(waiting);
    try {
      const answer = await ask(url("explain", state.slide.id, patch.row, name, select.value));
      const picture = document.createElement("img");
      picture.alt = `${select.value} of patch ${patch.row}`;
      picture.src = URL.createObjectURL(await answer.blob());
      picture.onload = () => URL.revokeObjectURL(picture.src);
      waiting.replaceWith(picture);
    } catch (problem) {
      waiting.textContent = problem.message;
    }
  });
  label.append(select);
  return label;
}

// ------------------------------------------------------------ review

function finishRegion() {
  const [x, y, width, height] = boxOf(state.region);
  state.region = width > 1 && height > 1 ? { box: [x, y, width, height], ...state.region } : null;
  state.found = null;
  showFound();
  showReview();
  draw();
}

function target() {
  if (inside) return null; // a page cannot keep marks
  if (state.region) return { box: boxOf(state.region), name: "this region" };
  const patch = state.found?.patches[0];
  if (!patch) return null;
  const score = patch.scores[state.found.model] ?? undefined; // null: it was not scored
  return { box: state.found.box, name: `patch ${patch.row}`, row: patch.row, model: state.found.model, score };
}

// What a patch is, by its score and the verdict; empty where they do not say it.
function truthBy(chosen, verdict) {
  if (verdict === "unsure" || chosen.score === undefined) return "";
  return (chosen.score >= threshold(chosen.model)) === (verdict === "right") ? "tumour" : "normal";
}

// The mark that a patch has already.
const markOf = (chosen) => listMarks().find(({ properties }) => chosen.row !== undefined
  && properties?.metadata?.row === String(chosen.row) && properties.metadata.model === chosen.model);

async function mark(verdict) {
  if (inside) return complain("this page keeps no marks; open the run with wsi-pipeline view");
  const chosen = target();
  if (!chosen) return complain("click on a patch, or drag a region with Shift, before marking it");
  const [x, y, width, height] = chosen.box;
  const points = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]];
  const truth = truthBy(chosen, verdict) || (verdict === "unsure" ? "" : $("truth")?.value ?? "");
  const same = markOf(chosen);
  const added = { points, verdict, truth, note: $("note")?.value ?? "", model: chosen.model, score: chosen.score, row: chosen.row };
  if (same) added.id = same.id;
  await changeReview({ add: added });
}

async function changeReview(change) {
  const { slide } = state;
  try {
    const found = await askJson(url("api", "review", slide.id), {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(change),
    });
    if (state.slide !== slide) return;
    known.review = found;
    state.region = null;
  } catch (problem) {
    return complain(problem.message); // what was typed stays
  }
  showReview();
  draw();
}

function truthChoice() {
  const label = document.createElement("label");
  const select = document.createElement("select");
  select.id = "truth";
  for (const [value, text] of [["", "not stated"], ["tumour", "tumour"], ["normal", "normal"]]) select.append(new Option(text, value));
  label.append("It is ", select);
  return label;
}

function showReview() {
  const chosen = target();
  const parts = [];
  if (chosen) {
    const name = document.createElement("p");
    name.textContent = `Is ${chosen.model ? `${chosen.model} right at ${chosen.name}` : `the model right at ${chosen.name}`}?`;
    const buttons = document.createElement("div");
    buttons.className = "verdicts";
    for (const verdict in VERDICTS) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.verdict = verdict;
      const truth = truthBy(chosen, verdict);
      button.textContent = truth ? `${verdict}: ${truth}` : verdict;
      button.style.borderBottom = `3px solid ${VERDICTS[verdict]}`;
      button.addEventListener("click", () => mark(verdict));
      buttons.append(button);
    }
    const note = document.createElement("textarea");
    note.id = "note";
    note.placeholder = "Note";
    note.setAttribute("aria-label", "Note");
    note.value = markOf(chosen)?.properties.metadata.note ?? "";
    parts.push(name, note);
    if (chosen.score === undefined) parts.push(truthChoice()); // of a patch, the score and the verdict say it
    parts.push(buttons);
  }
  const marks = listMarks();
  if (marks.length) {
    const list = document.createElement("ul");
    list.className = "marks";
    for (const one of marks) {
      const line = document.createElement("li");
      const go = document.createElement("button");
      go.type = "button";
      go.className = "go";
      const verdict = one.properties?.classification?.name ?? "mark";
      go.textContent = `${verdict}${one.properties?.name && one.properties.name !== verdict ? `: ${one.properties.name}` : ""}`;
      go.style.borderLeft = `4px solid ${VERDICTS[verdict] ?? "#666"}`;
      const points = ringsOf(one.geometry).flat();
      const middle = (axis) => (Math.min(...points.map((at) => at[axis])) + Math.max(...points.map((at) => at[axis]))) / 2;
      go.addEventListener("click", () => points.length && goTo(middle(0), middle(1)));
      line.append(go);
      list.append(line);
      if (inside) continue;
      const gone = document.createElement("button");
      gone.type = "button";
      gone.textContent = "✕";
      gone.setAttribute("aria-label", `Remove this mark (${verdict})`);
      gone.addEventListener("click", () => changeReview({ remove: one.id }));
      line.append(gone);
    }
    parts.push(list);
  }
  $("review").replaceChildren(...parts);
}

// ------------------------------------------------------------ controls

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  select.disabled = names.length < 2;
}

function showMaps() {
  const names = state.slide?.maps?.[state.models[0]] ?? [];
  fill($("map"), names.length ? names : ["none yet: wsi-pipeline heatmap"], mapName(state.models[0]));
}

function showLegend() {
  const map = known.maps[mapKey(state.models[0])];
  const style = map ? styleOf(map) : { low: 0, high: 1 };
  $("low").textContent = shorten(style.low);
  $("high").textContent = shorten(style.high);
  const context = $("ramp").getContext("2d");
  const ramp = ramps[state.colours];
  for (let i = 0; i < 256; i += 1) {
    context.fillStyle = `rgb(${ramp[3 * i]} ${ramp[3 * i + 1]} ${ramp[3 * i + 2]})`;
    context.fillRect(i, 0, 1, 10);
  }
  $("opacity-is").textContent = `${Math.round(100 * state.opacity)} %`;
  $("threshold-is").textContent = state.threshold.toFixed(2);
}

function setPanes() {
  while (panes.length < (state.compare ? 2 : 1)) panes.push(new Pane(panes.length));
  while (panes.length > (state.compare ? 2 : 1)) panes.pop().element.remove();
  $("model-b").disabled = !state.compare;
  $("compare").checked = state.compare;
  draw();
}

function toggleCompare() {
  state.compare = !state.compare && run.models.length > 1;
  setPanes();
}

function toggle(name) {
  state.layers[name] = !state.layers[name];
  $(`layer-${name}`).checked = state.layers[name];
  draw();
}

// Brings the controls in line with the state.
function showControls() {
  const names = run.models.map((one) => one.name);
  fill($("model"), names.length ? names : ["none"], state.models[0]);
  fill($("model-b"), names, state.models[1]);
  $("model-b").disabled = !state.compare;
  fill($("colours"), Object.keys(COLOURS), state.colours);
  $("compare").disabled = names.length < 2;
  for (const name of ["opacity", "threshold"]) $(name).value = state[name];
  for (const name in LAYERS) $(`layer-${name}`).checked = state.layers[name];
  showMaps();
  showLegend();
}

function makeControls() {
  for (const name of ["opacity", "threshold"]) {
    $(name).addEventListener("input", () => {
      state[name] = Number($(name).value);
      showLegend();
      draw();
    });
  }
  $("model").addEventListener("change", () => {
    state.models[0] = $("model").value;
    listSlides();
    showMaps();
    readModel(state.models[0]);
  });
  $("model-b").addEventListener("change", () => {
    state.models[1] = $("model-b").value;
    readModel(state.models[1]);
  });
  $("map").addEventListener("change", () => {
    state.map = $("map").value;
    state.models.forEach(readModel);
  });
  $("colours").addEventListener("change", () => {
    state.colours = $("colours").value;
    showLegend();
    draw();
  });
  $("compare").addEventListener("change", toggleCompare);
  $("sort").addEventListener("change", listSlides);
  $("filter").addEventListener("input", listSlides);
  $("open-slides").addEventListener("click", () => $("slides").classList.toggle("open"));
  $("open-side").addEventListener("click", () => $("side").classList.toggle("open"));
  for (const [name, [key, title]] of Object.entries(LAYERS)) {
    const label = document.createElement("label");
    label.className = "check";
    const box = document.createElement("input");
    box.type = "checkbox";
    box.id = `layer-${name}`;
    box.addEventListener("change", () => toggle(name));
    label.append(box, `${title} (${key})`);
    $("layers").append(label);
  }
  showControls();
}

const KEYS = {
  n: () => stepSlide(1), p: () => stepSlide(-1), e: nextError, c: toggleCompare, 0: showWhole,
  1: () => goTo(state.view.x, state.view.y, 1 / (window.devicePixelRatio || 1)),
  "+": () => zoomAt(panes[0], panes[0].size.map((side) => side / 2), 0.5),
  "=": () => KEYS["+"](),
  "-": () => zoomAt(panes[0], panes[0].size.map((side) => side / 2), 2),
  ArrowLeft: () => moveBy(-80, 0), ArrowRight: () => moveBy(80, 0), ArrowUp: () => moveBy(0, -80), ArrowDown: () => moveBy(0, 80),
  r: () => mark("right"), w: () => mark("wrong"), q: () => mark("unsure"),
  Escape: () => {
    state.found = state.region = null;
    for (const id of ["slides", "side"]) $(id).classList.remove("open");
    complain("");
    showFound();
    showReview();
    draw();
  },
  ...Object.fromEntries(Object.entries(LAYERS).map(([name, [key]]) => [key, () => toggle(name)])),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const { tagName, type } = event.target;
  const isTyping = tagName === "TEXTAREA" || tagName === "SELECT" || (tagName === "INPUT" && type !== "checkbox");
  if (isTyping || !(event.key in KEYS) || (!state.slide && !"npe".includes(event.key))) return;
  event.preventDefault();
  KEYS[event.key]();
});

async function start() {
  try {
    Object.assign(run, await askJson("api/run"));
  } catch (problem) {
    return complain(problem.message);
  }
  const { slide, view, look } = readLink();
  $("title").textContent = run.name;
  $("held").textContent = inside?.held ?? "";
  $("to-report").hidden = !run.has_report;
  setPanes();
  makeControls();
  listSlides();
  const own = inside && run.slides.find((one) => has(url("api", "slide", one.id)));
  const first = run.slides.some((one) => one.id === slide) ? slide : (own ?? sortSlides()[0])?.id;
  if (slide && first !== slide) complain(`this run has no slide ${slide}`);
  if (first) await openSlide(first, first === slide ? view : null);
  if (look && first === slide) await lookAt([view.x, view.y], panes[0]);
  if (run.problems?.length) complain(run.problems.join("; "));
}

addEventListener("hashchange", async () => {
  const { slide, view, look } = readLink();
  setPanes();
  showControls();
  if (slide !== state.id && run.slides.some((one) => one.id === slide)) await openSlide(slide, view);
  else if (view && state.slide) goTo(view.x, view.y, view.scale);
  await Promise.all(state.models.map(readModel));
  if (look) await lookAt([view.x, view.y], panes[0]);
});

window.viewer = { run, state, known, panes }; // for tests and the console
start();
