// The panel of edits: what shall be done to the model, how far the trial is, and what came of it.
import { h } from "./dom";
import { doseCurve } from "./dose";
import type { Edits } from "./edits";
import type { Scene } from "./paint";
import type { Store, View } from "./store";
import type { EditFacts, EditForm, EditKind } from "./types";

const KINDS: { kind: EditKind; name: string; group: string }[] = [
  { kind: "tokens", name: "Steer to the clicked tokens", group: "Steer" },
  { kind: "group", name: "Steer to a concept", group: "Steer" },
  { kind: "words", name: "Steer from word to word", group: "Steer" },
  { kind: "latent", name: "Steer along a latent", group: "Steer" },
  { kind: "attention", name: "Cut attention", group: "Knock out" },
  { kind: "module", name: "Remove a module", group: "Knock out" },
];
const WHERE = ["all", "patch", "text", "state", "last", "answer", "readout"];
const FRAMES: { value: string; name: string }[] = [
  { value: "1|episode", name: "this frame" },
  { value: "8|episode", name: "8 frames of this episode" },
  { value: "16|run", name: "16 frames of the run" },
  { value: "48|run", name: "48 frames of the run" },
];

export class EditPanel {
  private form = h("form", {});
  private state = h("div", { "aria-live": "polite" });
  private older = h("p", { class: "note older", hidden: true }, "Of an earlier edit: the form says something else now.");
  private result = h("div", { class: "result", "aria-live": "polite", hidden: true });
  private key = "";
  private resultKey: EditFacts | undefined;
  private scene!: Scene;

  constructor(private root: HTMLElement, private edits: Edits, private store: Store) {
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      void edits.start(store.view);
    });
    root.append(h("div", {}, h("h3", {}, "Edit the model"),
      h("p", { class: "note" }, "Do something to what it sees, and look at what it then does.")), this.form, this.state, this.result);
  }

  draw(scene: Scene): void {
    this.scene = scene;
    this.root.hidden = scene.view.panel !== "edit";
    if (this.root.hidden) return;
    this.edits.open();
    const { edit, site, k, query, clicks } = scene.view;
    const key = JSON.stringify([edit.kind, edit.where, edit.mean, edit.curve, edit.scope, edit.frames, edit.source, edit.reader, edit.group,
      edit.dictionary, site, k, query, clicks, this.edits.choices, scene.data.groupColors(0, k).length]);
    if (key !== this.key) {
      this.key = key;
      this.build(scene.view);
    }
    this.edits.check(scene.view);
    this.progress();
    this.older.hidden = this.edits.isCurrent(scene.view);
    if (this.edits.facts !== this.resultKey) {
      this.resultKey = this.edits.facts;
      this.show(this.edits.facts);
    }
  }

  private set(patch: Partial<EditForm>): void {
    this.store.set({ edit: { ...this.store.view.edit, ...patch } });
  }

  /** Make the fields that the kind of edit needs; what has the focus keeps it. */
  private build(view: View): void {
    const focus = (document.activeElement as HTMLElement | null)?.dataset?.field;
    const { edit } = view, choices = this.edits.choices;
    const rows: (HTMLElement | null)[] = [];
    const kinds = h("select", { "data-field": "kind", "aria-label": "What shall be done",
      change: () => this.set({ kind: kinds.value as EditKind, ...(kinds.value === "words" ? { where: "text" } : {}) }) });
    for (const name of ["Steer", "Knock out"]) {
      kinds.append(h("optgroup", { label: name }, ...KINDS.filter((one) => one.group === name)
        .map(({ kind, name: text }) => h("option", { value: kind, selected: kind === edit.kind }, text))));
    }
    rows.push(row("What", kinds));
    const { runs } = this.scene.data;
    if (runs.length > 1) rows.push(hint(`It is the model of ${runs[0]!.name} that is edited.`));
    const steers = edit.kind !== "attention" && edit.kind !== "module";
    if (edit.kind === "tokens") rows.push(this.clicked(view));
    if (edit.kind === "group") rows.push(this.concept(view));
    if (edit.kind === "words") {
      rows.push(row("From", this.text("from", "a word of the prompt", choices?.words)), row("To", this.text("to", "another word", choices?.words)));
    }
    if (edit.kind === "latent") {
      const names = choices?.dictionaries ?? [];
      if (!names.length) rows.push(hint("This run has no dictionary; `vlascope sae train` makes one."));
      else rows.push(row("Dictionary", this.choose("dictionary", names)), row("Latent", this.number("latent", 0, 1e6, 1)));
    }
    if (edit.kind === "attention") {
      const sources = (choices?.kinds ?? ["patch", "text"]).filter((kind) => kind !== "action");
      rows.push(row("Hide", this.choose("source", [...sources, "answer"])),
        row("From", this.choose("reader", ["action", "all", ...sources])), row("In blocks", this.text("blocks", "language.*")));
    }
    if (edit.kind === "module") {
      const mean = h("input", { type: "checkbox", "data-field": "mean", checked: edit.mean, change: () => this.set({ mean: mean.checked }) });
      rows.push(row("Module", this.text("module", "such as language.3.mlp", choices?.modules)),
        row("Instead", h("label", {}, mean, h("span", {}, "its mean (else zero)"))));
    }
    if (steers) {
      if (edit.kind === "group") rows.push(row("At", h("span", {}, `${view.site} (the shown layer)`)));
      if (edit.kind === "words") rows.push(this.wordLayer(view));
      rows.push(row("Tokens", this.choose("where", WHERE)), row("Strength", ...this.strength()));
      const curve = h("input", { type: "checkbox", "data-field": "curve", checked: edit.curve, change: () => this.set({ curve: curve.checked }) });
      rows.push(row("Curve", h("label", {}, curve, h("span", {}, "four other strengths as well"))));
    }
    const frames = h("select", { "data-field": "frames", "aria-label": "Tried on", change: () => {
      const [n, scope] = frames.value.split("|");
      this.set({ frames: Number(n), scope: scope as EditForm["scope"] });
    } }, ...FRAMES.map(({ value, name }) => h("option", { value, selected: value === `${edit.frames}|${edit.scope}` }, name)));
    rows.push(row("Tried on", frames));
    rows.push(h("div", { class: "go" }, h("button", { type: "submit", class: "primary", id: "try" }, "Try it"),
      h("button", { type: "button", class: "second", id: "stop", hidden: true, click: () => void this.edits.stop() }, "Stop")));
    this.form.replaceChildren(...rows.filter((one) => one !== null));
    if (focus) this.form.querySelector<HTMLElement>(`[data-field="${focus}"]`)?.focus();
  }

  private clicked(view: View): HTMLElement {
    const mine = this.edits.clicked(view);
    if (!mine.length) return hint("Click a patch or a word first: it says which way. Shift+click adds, Alt+click says away from where.");
    const n = mine.filter((c) => c.positive).length, out = mine.length - n;
    const away = out ? `, away from ${out}` : ", away from the mean";
    return row("To", h("span", {}, `${n} clicked at ${mine[0]!.site}${away}`));
  }

  /** Where words are steered: a layer that reads the images alone has none. */
  private wordLayer(view: View): HTMLElement {
    const site = this.edits.siteOf(view);
    if (!site) return hint("No layer of this run has words.");
    const why = site === view.site ? "the shown layer" : `the last with words; ${view.site} has none`;
    return row("At", h("span", {}, `${site} (${why})`));
  }

  private concept(view: View): HTMLElement {
    this.scene.data.labels(0, view.site, view.k); // brings the colours
    const colors = this.scene.data.groupColors(0, view.k);
    const swatch = h("span", { class: "swatch" });
    swatch.style.background = colors[view.edit.group] ?? "transparent";
    const input = h("select", { "data-field": "group", "aria-label": "Concept", change: () => this.set({ group: Number(input.value) }) },
      ...colors.map((_, i) => h("option", { value: i, selected: i === view.edit.group }, `${i + 1} of ${view.k}`)));
    return row("To concept", swatch, input);
  }

  private strength(): HTMLElement[] {
    const { edit } = this.store.view;
    const shown = h("output", {}, String(edit.strength));
    const slider = h("input", { type: "range", min: -12, max: 12, step: 0.5, value: edit.strength, "data-field": "strength",
      "aria-label": "Strength, in units of the direction", input: () => {
        shown.textContent = slider.value;
        this.set({ strength: Number(slider.value) });
      } });
    return [slider, shown];
  }

  private text(field: "from" | "to" | "blocks" | "module", placeholder: string, known?: string[]): HTMLElement {
    const input = h("input", { type: "text", value: this.store.view.edit[field], placeholder, maxlength: 60, "data-field": field,
      "aria-label": { from: "From word", to: "To word", blocks: "In which blocks", module: "Module" }[field],
      list: known?.length ? `known-${field}` : undefined, input: () => this.set({ [field]: input.value }) });
    if (!known?.length) return input;
    return h("span", { class: "value" }, input, h("datalist", { id: `known-${field}` }, ...known.map((value) => h("option", { value }))));
  }

  private number(field: "latent", min: number, max: number, step: number): HTMLElement {
    const input = h("input", { type: "number", min, max, step, value: this.store.view.edit[field], "data-field": field, "aria-label": "Latent",
      input: () => this.set({ [field]: Math.max(min, Math.round(Number(input.value) || 0)) }) });
    return input;
  }

  private choose(field: "dictionary" | "source" | "reader" | "where", names: string[]): HTMLElement {
    const now = this.store.view.edit[field];
    if (!names.includes(now) && field === "dictionary") queueMicrotask(() => this.set({ dictionary: names[0]! }));
    const labels = { dictionary: "Dictionary", source: "What is not seen", reader: "Who does not see it", where: "Which tokens are steered" };
    const select = h("select", { "data-field": field, "aria-label": labels[field], change: () => this.set({ [field]: select.value }) },
      ...names.map((name) => h("option", { value: name, selected: name === now }, name)));
    return select;
  }

  private progress(): void {
    const { job, error, isRunning } = this.edits;
    const go = this.form.querySelector<HTMLButtonElement>("#try"), stop = this.form.querySelector<HTMLButtonElement>("#stop");
    if (go) go.disabled = isRunning;
    if (stop) stop.hidden = !isRunning;
    const left = job?.left_secs == null ? "" : ` · ${Math.max(1, Math.round(job.left_secs))} s left`;
    const key = error ? `!${error}` : isRunning ? `${job!.text}|${job!.done}|${job!.total}|${left}` : job?.state ?? "";
    if (this.state.dataset.key === key) return;
    this.state.dataset.key = key;
    if (error) this.state.replaceChildren(h("p", { class: "error" }, error));
    else if (isRunning) {
      const bar = h("progress", { max: Math.max(1, job!.total), value: job!.done, "aria-label": "How far the trial is" });
      this.state.replaceChildren(bar, h("p", { class: "note" }, `${job!.text}${left}`));
    } else this.state.replaceChildren(job?.state === "cancelled" ? h("p", { class: "note" }, "Stopped.") : "");
  }

  private show(facts: EditFacts | undefined): void {
    this.result.hidden = !facts;
    if (!facts) return;
    const frame = this.scene.data.itemName(facts.item);
    const parts: (HTMLElement | null)[] = [h("div", {}, h("h3", {}, signs(facts.name)), this.older, h("p", {}, facts.verdict))];
    if (facts.dose) parts.push(doseCurve(facts.dose));
    if (facts.rows.length) parts.push(table(facts, frame));
    else if (facts.words) parts.push(h("p", { class: "note" }, `before: ${facts.words.before}`), h("p", {}, `after: ${facts.words.after}`));
    if (facts.rows.some((one) => one.before !== null && one.after === null)) {
      parts.push(h("p", { class: "error" }, "Under the edit the answer is no whole action: the model is no longer itself. Try less."));
    }
    if (facts.changed !== null && facts.n_items > 1) {
      parts.push(h("p", { class: "note" }, `${Math.round(100 * facts.changed)} % of the answers are different.`));
    }
    if (facts.as_captured === false) {
      parts.push(h("p", { class: "error" }, `Without the edit the model answers otherwise to ${frame} than when the run was captured (another device or library?).`));
    }
    const moved = facts.layers.filter((layer) => layer.moved > 0);
    if (moved.length) parts.push(layers(moved, frame));
    else if (facts.layers.length) parts.push(h("p", { class: "note" }, `No token of ${frame} has become like another one.`));
    parts.push(h("div", { class: "go" }, h("button", { type: "button", class: "second", click: () => this.edits.clear() }, "Clear")));
    this.result.replaceChildren(...parts.filter((one) => one !== null));
  }
}

/** Decimals that two different sizes need to look different, at least `digits`. */
function apart(a: number | null, b: number | null, digits: number): number {
  if (a === null || b === null || Math.abs(a) === b) return digits;
  while (digits < 6 && Math.abs(a).toFixed(digits) === b.toFixed(digits)) digits++;
  return digits;
}

const number = (value: number | null, digits = 1): string => {
  if (value === null) return "–";
  const text = Math.abs(value).toFixed(digits);
  return `${value < 0 && Number(text) !== 0 ? "−" : Number(text) === 0 ? "" : "+"}${text}`;
};

/** Names of edits, with the signs that the terminal spares. */
export const signs = (name: string): string => name.replace(/ -> /g, " → ").replace(/ x (?=[-\d])/g, " × ");

function row(name: string, ...value: HTMLElement[]): HTMLElement {
  return h("div", { class: "row" }, h("span", { class: "name", "aria-hidden": "true" }, name), h("span", { class: "value" }, ...value));
}

const hint = (text: string): HTMLElement => h("p", { class: "note hint" }, text);

/** The action before and after, and how far it moves on average beside the largest of the controls. */
function table(facts: EditFacts, frame: string): HTMLElement {
  const isOne = facts.n_items === 1;
  const head = ["", "before", "after", isOne ? "moved" : `mean of ${facts.n_items}`, "control"];
  const body = facts.rows.map((one) => {
    const beats = one.move !== null && one.control !== null && Math.abs(one.move) > one.control;
    const digits = one.unit === "cm" ? 1 : 2;
    const fine = apart(one.move, one.control, digits);
    const move = h("td", {}, beats ? h("b", {}, number(one.move, fine)) : number(one.move, fine));
    if (one.interval) move.title = `95 % interval ${number(one.interval[0], 2)} to ${number(one.interval[1], 2)}`;
    return h("tr", {}, h("td", {}, one.unit ? `${one.name} (${one.unit})` : one.name), h("td", {}, number(one.before, digits)),
      h("td", {}, number(one.after, digits)), move, h("td", {}, one.control === null ? "–" : `±${one.control.toFixed(fine)}`));
  });
  return h("div", {}, h("table", {}, h("thead", {}, h("tr", {}, ...head.map((name) => h("th", { scope: "col" }, name)))), h("tbody", {}, ...body)),
    h("p", { class: "note" }, `Before and after: the action of ${frame}. Moved: the expected action, which also sees changes below one step. `
      + "Control: the most that any control moves it."));
}

/** Which share of the frame's tokens became like others, layer by layer; grey: like none of the run. */
function layers(found: EditFacts["layers"], frame: string): HTMLElement {
  const bars = found.flatMap((layer) => {
    const near = h("i", {}), far = h("i", { class: "far" });
    near.style.width = `${100 * (layer.moved - layer.far)}%`;
    far.style.width = `${100 * layer.far}%`;
    const share = layer.moved < 0.01 ? "< 1 %" : `${Math.round(100 * layer.moved)} %`;
    return [h("span", { class: "name" }, layer.site), h("span", { class: "bar" }, near, far), h("span", { class: "share" }, share)];
  });
  return h("div", {}, h("h3", {}, "Tokens that became like others"), h("div", { class: "bars" }, ...bars),
    h("p", { class: "note" }, `Of ${frame}. Grey: farther from every token of the run than two of them usually are.`));
}
