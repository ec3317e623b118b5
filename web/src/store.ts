// The state of the view: one plain object, written to the address after changes, so that a copied link opens the
// same view. Nothing else on the page remembers anything.
import type { Click, EditForm, Ref } from "./types";

export type ColorMode = "palette" | "groups";
export type Theme = "auto" | "light" | "dark";

export interface View {
  item: number;
  site: string;
  site2: string;
  color: ColorMode;
  k: number;
  palette: string;
  eig: number;
  method: "concepts" | "features";
  mix: number;
  smooth: boolean;
  theme: Theme;
  /** The camera that was pointed at last: the layer strip shows it. */
  camera: number;
  /** The group that stays lit although the pointer is elsewhere; -1: none. */
  pin: number;
  query: Ref | null;
  clicks: Click[];
  /** What stands on the right: the layers, or the panel of edits. */
  panel: "layers" | "edit";
  edit: EditForm;
}

export const NO_EDIT: EditForm = {
  kind: "tokens", where: "patch", strength: 1, curve: false, frames: 8, scope: "episode", group: 0, from: "", to: "", dictionary: "",
  latent: 0, source: "patch", reader: "action", blocks: "language.*", module: "", mean: true,
};
const KINDS = ["tokens", "group", "words", "latent", "attention", "module"];

/** An address is written once the view has been the same for so long: browsers refuse a hundred of them in a row. */
const WRITE_MS = 200;

type Listener = (view: View, changed: Set<keyof View>) => void;

export class Store {
  view: View;
  private listeners: Listener[] = [];
  private changed = new Set<keyof View>();
  private scheduled = 0;
  private isWritten = false;
  private writing = 0;

  constructor(start: View) {
    this.view = start;
    addEventListener("pagehide", () => this.write());
  }

  /**
   * Change the view, and draw it with the next frame.
   * @param withinMs Wait so long for something else to be drawn with it: drawing twice takes time from the server.
   */
  set(patch: Partial<View>, withinMs = 0): void {
    let isNew = false;
    for (const key of Object.keys(patch) as (keyof View)[]) {
      if (JSON.stringify(patch[key]) === JSON.stringify(this.view[key])) continue;
      this.changed.add(key);
      isNew = true;
    }
    if (!isNew) return;
    this.view = { ...this.view, ...patch };
    if (withinMs) setTimeout(() => this.changed.size && this.schedule(), withinMs);
    else this.schedule();
  }

  /** Draw again although the view is the same: something that it needs has arrived. */
  touch(): void {
    this.schedule();
  }

  subscribe(listener: Listener): void {
    this.listeners.push(listener);
  }

  /** Draw now instead of with the next frame, which then only has to show it. */
  draw(): void {
    cancelAnimationFrame(this.scheduled);
    this.scheduled = 0;
    const changed = this.changed;
    this.changed = new Set();
    for (const listener of this.listeners) listener(this.view, changed);
    if (!changed.size && this.isWritten) return;
    this.isWritten = true;
    clearTimeout(this.writing);
    this.writing = window.setTimeout(() => this.write(), WRITE_MS);
  }

  /** Whether the address says what is shown. */
  get isSaved(): boolean {
    return !this.writing && !this.changed.size;
  }

  /** Write the address of the view now. */
  write(): void {
    clearTimeout(this.writing);
    this.writing = 0;
    const hash = `#${toHash(this.view)}`;
    if (hash !== location.hash) history.replaceState(null, "", hash);
  }

  private schedule(): void {
    this.scheduled ||= requestAnimationFrame(() => this.draw());
  }
}

const ref = (r: Ref) => `${r.run}:${r.token}:${r.site}`;

function unref(text: string): Ref | null {
  const [run, token, ...site] = text.split(":");
  const found = { run: Number(run), token: Number(token), site: site.join(":") };
  const isFine = [0, 1].includes(found.run) && Number.isInteger(found.token) && found.token >= 0 && found.site !== "";
  return isFine ? found : null;
}

export function toHash(view: View): string {
  const out = new URLSearchParams();
  out.set("item", String(view.item));
  out.set("site", view.site);
  if (view.site2) out.set("site2", view.site2);
  out.set("color", view.color);
  out.set("k", String(view.k));
  out.set("palette", view.palette);
  out.set("eig", String(view.eig));
  out.set("like", view.method);
  out.set("mix", String(view.mix));
  if (view.smooth) out.set("smooth", "1");
  if (view.theme !== "auto") out.set("theme", view.theme);
  if (view.camera) out.set("camera", String(view.camera));
  if (view.color === "groups" && view.pin >= 0) out.set("pin", String(view.pin));
  if (view.query) out.set("q", ref(view.query));
  for (const click of view.clicks) out.append(click.positive ? "in" : "out", ref(click));
  if (view.panel === "edit") {
    out.set("panel", "edit");
    // Only what differs from the start: addresses stay short.
    for (const key of Object.keys(NO_EDIT) as (keyof EditForm)[]) {
      if (view.edit[key] !== NO_EDIT[key]) out.set(`edit.${key}`, String(view.edit[key]));
    }
  }
  return out.toString();
}

function editFrom(given: URLSearchParams): EditForm {
  const edit = { ...NO_EDIT } as Record<string, unknown>;
  for (const [key, start] of Object.entries(NO_EDIT)) {
    const text = given.get(`edit.${key}`);
    if (text === null || text.length > 200) continue;
    if (typeof start === "number") edit[key] = Number.isFinite(Number(text)) ? Number(text) : start;
    else edit[key] = typeof start === "boolean" ? text === "true" : text;
  }
  if (!KINDS.includes(edit.kind as string)) edit.kind = NO_EDIT.kind;
  if (edit.scope !== "run") edit.scope = "episode";
  return edit as unknown as EditForm;
}

/** Return what an address says of the view; what it does not say, or says wrongly, is left out. */
export function fromHash(hash: string): Partial<View> {
  const given = new URLSearchParams(hash.replace(/^#/, ""));
  const view: Partial<View> = {};
  const number = (name: string): number | undefined => {
    const text = given.get(name);
    return text !== null && /^\d+$/.test(text) ? Number(text) : undefined;
  };
  const item = number("item"), k = number("k"), eig = number("eig"), mix = number("mix");
  const camera = number("camera"), pin = number("pin");
  if (item !== undefined) view.item = item;
  if (k !== undefined) view.k = k;
  if (eig !== undefined) view.eig = eig;
  if (camera !== undefined) view.camera = camera;
  if (pin !== undefined) view.pin = pin;
  if (mix !== undefined && mix <= 100) view.mix = mix;
  for (const name of ["site", "site2", "palette"] as const) {
    const text = given.get(name);
    if (text !== null) view[name] = text;
  }
  const color = given.get("color"), like = given.get("like"), theme = given.get("theme");
  if (color === "palette" || color === "groups") view.color = color;
  if (like === "concepts" || like === "features") view.method = like;
  if (theme === "light" || theme === "dark") view.theme = theme;
  view.smooth = given.get("smooth") === "1";
  view.query = unref(given.get("q") ?? "");
  const clicks: Click[] = [];
  for (const [name, text] of given) {
    const found = name === "in" || name === "out" ? unref(text) : null;
    if (found) clicks.push({ ...found, positive: name === "in" });
  }
  view.clicks = clicks.slice(0, 64);
  view.panel = given.get("panel") === "edit" ? "edit" : "layers";
  view.edit = editFrom(given);
  return view;
}
