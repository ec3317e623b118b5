// The words of the item at the shown layer (or, where that has none, at the last layer that has), in colour.
import { h } from "./dom";
import { inkOn, painter, type Hover, type Scene } from "./paint";
import type { PaneEvents } from "./stage";

const readable = (text: string): string => {
  const shown = text.replace(/^[Ġ▁]/, " ").replace(/Ċ|\n/g, "↵").replace(/\t/g, "⇥");
  return shown.trim() === "" ? "␣" : shown.trim();
};

export class WordsView {
  private key = "";
  private buttons: { button: HTMLButtonElement; run: number; token: number; local: number }[] = [];
  private scene!: Scene;

  constructor(private root: HTMLElement, private events: PaneEvents) {}

  draw(scene: Scene): void {
    this.scene = scene;
    const { data, view } = scene;
    const lines: { run: number; site: string; item: number }[] = [];
    data.runs.forEach((_, run) => {
      const site = data.wordSite(run, run === 0 ? view.site : view.site2), item = data.itemIn(run, view.item);
      if (site && item >= 0) lines.push({ run, site, item });
    });
    this.root.hidden = !lines.length;
    const known = lines.map((line) => data.place(line.run, line.site, line.item));
    const key = JSON.stringify([lines, known.map((k) => k?.start)]);
    if (key !== this.key) {
      this.key = key;
      this.buttons = [];
      this.root.replaceChildren(
        ...lines.map((line, i) => {
          const place = known[i];
          const row = h("div", { class: "sentence" });
          const name = data.runs.length > 1 ? `${data.runs[line.run]!.name} ${line.site}` : line.site;
          row.append(h("span", { class: "name" }, name, h("span", { class: "note own", hidden: true,
            title: "Coloured by a cut of the words alone: among the patches they come out almost in one colour" }, "own colours")));
          for (const word of place?.template.words ?? []) row.append(this.button(line, place!.start, word));
          return row;
        }),
      );
    }
    const isOwn = lines.map(({ run, site }) => view.color === "palette" && !!data.wordColors(run, site));
    this.root.querySelectorAll<HTMLElement>(".own").forEach((note, i) => (note.hidden = !isOwn[i]));
    this.mark(lines);
    this.paint(lines);
  }

  /** Outline the words that were clicked, at whichever layer that was. */
  private mark(lines: { run: number; site: string; item: number }[]): void {
    const { data, view } = this.scene;
    const all = [...view.clicks, ...(view.query ? [{ ...view.query, positive: true }] : [])];
    const marked = new Map<string, boolean>();
    for (const { run, site, item } of lines) {
      for (const click of all) {
        if (click.run !== run || data.site(run, click.site)?.layout !== data.site(run, site)?.layout) continue;
        const place = data.place(run, click.site, item);
        if (place && click.token >= place.start && click.token < place.start + place.template.n) {
          marked.set(`${run}|${click.token - place.start}`, click.positive);
        }
      }
    }
    for (const { button, run, local } of this.buttons) {
      const found = marked.get(`${run}|${local}`);
      button.classList.toggle("out", found === false);
      const pressed = String(found !== undefined);
      if (button.getAttribute("aria-pressed") !== pressed) button.setAttribute("aria-pressed", pressed);
    }
  }

  /** Whether a word is still on the page: another frame or layer may be shown. */
  shows(hover: Hover): boolean {
    return this.buttons.some(({ button, run, token }) => run === hover.run && token === hover.ref.token && button.dataset.site === hover.ref.site);
  }

  private button(line: { run: number; site: string; item: number }, start: number, word: { token: number; text: string; kind: string }) {
    const token = start + word.token;
    const hover: Hover = {
      run: line.run, item: line.item, ref: { run: line.run, site: line.site, token }, at: null,
      where: `${line.site} · “${readable(word.text)}” (${word.kind})`,
    };
    const button = h("button", {
      type: "button", class: `word ${word.kind}`, "data-run": line.run, "data-site": line.site,
      pointerenter: () => this.events.hover(hover),
      focus: () => this.events.hover(hover),
      pointerleave: () => this.events.hover(null),
      click: (event: MouseEvent) => this.events.pick(hover, event),
      contextmenu: (event: MouseEvent) => {
        event.preventDefault();
        this.events.pick(hover, { shiftKey: false, altKey: true });
      },
      keydown: (event: KeyboardEvent) => {
        if (event.key.toLowerCase() !== "x") return;
        event.stopPropagation();
        this.events.pick(hover, { shiftKey: false, altKey: true });
      },
    }, readable(word.text));
    this.buttons.push({ button, run: line.run, token, local: word.token });
    return button;
  }

  private paint(lines: { run: number; site: string }[]): void {
    const out = [0, 0, 0, 0];
    const painters = new Map(lines.map((l) => [`${l.run}|${l.site}`, painter(this.scene, l.run, l.site, true)]));
    for (const { button, token } of this.buttons) {
      const paint = painters.get(`${button.dataset.run}|${button.dataset.site}`);
      if (!paint) continue;
      paint.token(token, out, 0);
      const light = 1 - out[3]! / 255;
      const [r, g, b] = [out[0]! * light, out[1]! * light, out[2]! * light].map(Math.round) as [number, number, number];
      button.style.background = `rgb(${r} ${g} ${b})`;
      button.style.color = inkOn(r, g, b);
    }
  }
}
