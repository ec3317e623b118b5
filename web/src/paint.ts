// Painting the tokens of one image: a small picture per patch grid, stretched over the part of the image that it covers.
import type { Data } from "./data";
import type { Edits } from "./edits";
import type { Likeness } from "./likeness";
import type { View } from "./store";
import type { Grid, Ref } from "./types";

export interface Scene {
  data: Data;
  like: Likeness;
  view: View;
  edits: Edits;
  /** Group under the pointer (of the view's K); its members stay, the rest is darkened. -1: none. */
  group: number;
}

/** A patch under the pointer, or a word. */
export interface Hover {
  run: number;
  item: number;
  ref: Ref;
  /** Place in the image, in shares of its width and height; null for words. */
  at: { camera: number; x: number; y: number } | null;
  where: string;
}

const DARK = 0.86; // share of black over what is unlike

export const hexes = (list: string[]): Uint8Array => {
  const out = new Uint8Array(list.length * 3);
  list.forEach((hex, i) => {
    const value = parseInt(hex.slice(1), 16);
    out.set([value >> 16, (value >> 8) & 255, value & 255], 3 * i);
  });
  return out;
};

const groupColors = new Map<string, Uint8Array>();

function groupTable(scene: Scene, run: number): Uint8Array {
  const info = scene.data.runs[run]!;
  const key = `${info.key}|${scene.view.k}`;
  let table = groupColors.get(key);
  if (!table) {
    table = hexes(scene.data.groupColors(run, scene.view.k));
    if (table.length) groupColors.set(key, table);
  }
  return table;
}

/** Return how to colour a token of a site, `token` writes red, green, blue and the share of black (0..255) into `out`;
 * and `from`, what that depends on besides the view. */
export function painter(scene: Scene, run: number, site: string, isWord = false) {
  const { data, view, like } = scene;
  const own = isWord && view.color === "palette" ? data.wordColors(run, site) : null;
  const eig = Math.min(view.eig, data.runs[run]!.n_eig);
  const rgb = own ?? (view.color === "palette" ? data.colors(run, site, view.palette, eig) : undefined);
  const needsLabels = view.color === "groups" || scene.group >= 0;
  const labels = needsLabels ? data.labels(run, site, view.k) : undefined;
  if (view.color === "palette" ? !rgb || (isWord && own === undefined) : !labels) return undefined;
  const table = groupTable(scene, run);
  const values = like.kind === "none" ? undefined : like.values.get(`${run}|${site}`);
  const isMask = like.kind === "mask";
  const hasLike = like.kind !== "none";
  const paintToken = (token: number, out: Uint8ClampedArray | number[], at: number): void => {
    if (view.color === "palette") {
      out[at] = rgb![3 * token]!;
      out[at + 1] = rgb![3 * token + 1]!;
      out[at + 2] = rgb![3 * token + 2]!;
    } else {
      const group = 3 * labels![token]!;
      out[at] = table[group]!;
      out[at + 1] = table[group + 1]!;
      out[at + 2] = table[group + 2]!;
    }
    let dark = 0;
    if (hasLike) {
      const v = values ? values[token]! : 0;
      const s = v / 255;
      dark = isMask ? (v > 128 ? 0 : DARK) : DARK * (1 - s * s);
    }
    if (scene.group >= 0 && labels && labels[token] !== scene.group) dark = Math.max(dark, DARK);
    out[at + 3] = Math.round(255 * dark);
  };
  return { token: paintToken, from: [rgb, labels, values, table] as unknown[] };
}

const scratch = document.createElement("canvas");
const scratchDark = document.createElement("canvas");
const sheet = document.createElement("canvas");
const sheetDark = document.createElement("canvas");

/** What each canvas was drawn from last, and whether it was whole: the same again need not be drawn. */
const drawn = new WeakMap<HTMLCanvasElement, { from: unknown[]; isWhole: boolean }>();

/** Draw an item's camera image with the tokens of a site over it (without a site: the image alone). With `became`
 * each token has the colour of the one that it has become like. */
export function drawImagePane(
  canvas: HTMLCanvasElement, scene: Scene, run: number, item: number, camera: number, site: string | null,
  became?: Int32Array,
): boolean {
  const info = scene.data.items[run]!.items[item];
  const size = info?.sizes[camera];
  if (!info || !size) return false;
  const { view, like } = scene;
  const isTokens = site !== null;
  const image = scene.data.image(run, item, camera);
  const place = isTokens ? scene.data.place(run, site, item) : undefined;
  const paint = place ? painter(scene, run, site!) : undefined;
  const ratio = Math.min(2, window.devicePixelRatio || 1);
  const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
  const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
  const from = [width, height, run, item, camera, site, image, place?.template, became, ...(paint ? [
    view.color, view.k, view.mix, view.smooth, scene.group, like.kind, ...paint.from] : [view.mix])];
  const last = drawn.get(canvas);
  if (last && last.from.length === from.length && last.from.every((value, i) => value === from[i])) return last.isWhole;
  if (!image && !paint) return false;
  drawn.set(canvas, { from, isWhole: paint ? true : !isTokens && !!image });
  if (canvas.width !== width || canvas.height !== height) {
    canvas.width = width;
    canvas.height = height;
  }
  const [ih, iw] = size;
  const ctx = canvas.getContext("2d")!;
  ctx.globalAlpha = 1;
  ctx.imageSmoothingEnabled = true;
  ctx.imageSmoothingQuality = "high";
  ctx.clearRect(0, 0, width, height);
  const mix = scene.view.mix / 100;
  if (image) {
    // Under the colours the photograph is veiled, most where a crop left a margin that the model did not see.
    ctx.globalAlpha = site === null ? 1 : 1 - 0.55 * mix;
    ctx.drawImage(image, 0, 0, width, height);
  }
  if (!paint || !place) return !isTokens && !!image;
  const sx = width / iw, sy = height / ih;
  const grids = place.template.grids.filter((grid) => grid.camera === camera);
  // Crops lie over the overview and hide it: they are laid out on a sheet of their own, which is then blended once.
  const isStacked = grids.length > 1;
  const into = isStacked ? blank(sheet, width, height) : ctx;
  const intoDark = isStacked ? blank(sheetDark, width, height) : ctx;
  for (const grid of grids) {
    scratch.width = scratchDark.width = grid.cols;
    scratch.height = scratchDark.height = grid.rows;
    const small = scratch.getContext("2d")!, smallDark = scratchDark.getContext("2d")!;
    const pixels = small.createImageData(grid.cols, grid.rows);
    const shade = small.createImageData(grid.cols, grid.rows);
    for (let i = 0; i < grid.index.length; i++) {
      if (grid.index[i]! < 0) continue;
      const token = became ? became[grid.index[i]!]! : place.start + grid.index[i]!;
      // What an edit made unlike every token of the run has no colour of its own.
      if (token < 0) pixels.data.set([128, 128, 128, 0], 4 * i);
      else paint.token(token, pixels.data, 4 * i);
      shade.data[4 * i + 3] = pixels.data[4 * i + 3]!;
      pixels.data[4 * i + 3] = 255;
    }
    small.putImageData(pixels, 0, 0);
    smallDark.putImageData(shade, 0, 0);
    const [x0, y0, x1, y1] = grid.frame;
    const box = [x0 * sx, y0 * sy, (x1 - x0) * sx, (y1 - y0) * sy] as const;
    into.imageSmoothingEnabled = intoDark.imageSmoothingEnabled = scene.view.smooth;
    if (isStacked) intoDark.clearRect(...box);
    into.globalAlpha = isStacked ? 1 : mix;
    into.drawImage(scratch, ...box);
    intoDark.globalAlpha = 1;
    intoDark.drawImage(scratchDark, ...box);
  }
  if (isStacked) {
    ctx.globalAlpha = mix;
    ctx.drawImage(sheet, 0, 0);
    ctx.globalAlpha = 1;
    ctx.drawImage(sheetDark, 0, 0);
  }
  return true;
}

function blank(canvas: HTMLCanvasElement, width: number, height: number): CanvasRenderingContext2D {
  canvas.width = width; // clears it
  canvas.height = height;
  return canvas.getContext("2d")!;
}

/** Return the patch of an image at a place given in shares of its width and height; later crops lie on top. */
export function patchAt(
  scene: Scene, run: number, item: number, camera: number, site: string, x: number, y: number,
): { token: number; grid: Grid; row: number; col: number } | undefined {
  const place = scene.data.place(run, site, item);
  const size = scene.data.items[run]!.items[item]?.sizes[camera];
  if (!place || !size) return undefined;
  const px = x * size[1], py = y * size[0];
  for (const grid of [...place.template.grids].reverse()) {
    if (grid.camera !== camera) continue;
    const [x0, y0, x1, y1] = grid.frame;
    const col = Math.floor(((px - x0) / (x1 - x0)) * grid.cols);
    const row = Math.floor(((py - y0) / (y1 - y0)) * grid.rows);
    if (row < 0 || col < 0 || row >= grid.rows || col >= grid.cols) continue;
    const local = grid.index[row * grid.cols + col]!;
    if (local >= 0) return { token: place.start + local, grid, row, col };
  }
  return undefined;
}

/** Return where a token lies: camera and box in shares of the image; null for words. */
export function boxOf(scene: Scene, run: number, item: number, site: string, token: number) {
  const place = scene.data.place(run, site, item);
  if (!place || token < place.start || token >= place.start + place.template.n) return null;
  for (const grid of place.template.grids) {
    const at = grid.index.indexOf(token - place.start);
    if (at < 0) continue;
    const size = scene.data.items[run]!.items[item]!.sizes[grid.camera]!;
    const row = Math.floor(at / grid.cols), col = at % grid.cols;
    return { camera: grid.camera, ...cellBox(grid, row, col, size) };
  }
  return null;
}

export function cellBox(grid: Grid, row: number, col: number, size: [number, number]) {
  const [x0, y0, x1, y1] = grid.frame;
  const w = (x1 - x0) / grid.cols, h = (y1 - y0) / grid.rows;
  return { left: (x0 + col * w) / size[1], top: (y0 + row * h) / size[0], width: w / size[1], height: h / size[0] };
}

/** Black or white, whichever can be read on a colour. */
export function inkOn(r: number, g: number, b: number): string {
  const linear = [r, g, b].map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0]! + 0.7152 * linear[1]! + 0.0722 * linear[2]! > 0.179 ? "#000000" : "#ffffff";
}
