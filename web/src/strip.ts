// The right side: the same image at every layer, so that one sees where a concept appears and is lost.
import { h } from "./dom";
import { cellBox, drawImagePane, patchAt, type Hover, type Scene } from "./paint";
import { setBox } from "./stage";

interface Thumb {
  run: number;
  site: string;
  button: HTMLButtonElement;
  canvas: HTMLCanvasElement;
  cursor: HTMLElement;
}

export class Strip {
  private thumbs: Thumb[] = [];
  private visible = new Set<Element>();
  private scene!: Scene;
  private watcher: IntersectionObserver;
  private shape = "";

  constructor(private root: HTMLElement, private choose: (run: number, site: string) => void) {
    this.watcher = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) this.visible.add(entry.target);
          else this.visible.delete(entry.target);
        }
        if (this.scene) this.draw(this.scene);
      },
      { root, rootMargin: "160px" },
    );
  }

  private build(): void {
    const { data } = this.scene;
    this.thumbs = [];
    this.root.replaceChildren();
    this.root.classList.toggle("two", data.runs.length > 1);
    data.runs.forEach((info, run) => {
      const column = h("div", { class: "column" });
      if (data.runs.length > 1) column.append(h("h3", {}, info.name));
      for (const site of info.sites) {
        const canvas = h("canvas", { "aria-hidden": "true" });
        const cursor = h("div", { class: "cursor", hidden: true });
        const frame = h("span", { class: "frame" }, canvas, cursor);
        const words = site.patches ? null : h("span", { class: "note" }, "words only");
        const button = h("button", { type: "button", class: "thumb", "aria-pressed": "false",
          click: () => this.choose(run, site.name) }, site.patches ? frame : words, h("span", { class: "name" }, site.name));
        column.append(button);
        this.thumbs.push({ run, site: site.name, button, canvas, cursor });
        this.watcher.observe(button);
      }
      this.root.append(column);
    });
  }

  draw(scene: Scene): void {
    this.scene = scene;
    const { data, view } = scene;
    const size = data.items[0]!.items[view.item]!.sizes[0] ?? [1, 1];
    const shape = JSON.stringify(data.runs.map((r) => r.key));
    if (shape !== this.shape) {
      this.shape = shape;
      this.build();
    }
    for (const thumb of this.thumbs) {
      const chosen = thumb.run === 0 ? view.site : view.site2;
      const isChosen = thumb.site === chosen;
      const pressed = String(isChosen), shape = `${size[1]} / ${size[0]}`;
      if (thumb.button.getAttribute("aria-pressed") !== pressed) thumb.button.setAttribute("aria-pressed", pressed);
      if (thumb.canvas.style.aspectRatio !== shape) thumb.canvas.style.aspectRatio = shape;
    }
    // Drawing reads sizes: only once nothing is changed any more, or each thumb is laid out anew.
    for (const thumb of this.thumbs) {
      if (!this.visible.has(thumb.button)) continue;
      const item = data.itemIn(thumb.run, view.item);
      if (item >= 0) drawImagePane(thumb.canvas, scene, thumb.run, item, 0, thumb.site);
    }
  }

  /** Bring the chosen layer into view. */
  reveal(): void {
    this.root.querySelector('[aria-pressed="true"]')?.scrollIntoView({ block: "nearest" });
  }

  point(hover: Hover | null): void {
    for (const thumb of this.thumbs) {
      const item = this.scene.data.itemIn(thumb.run, this.scene.view.item);
      const isHere = hover?.at?.camera === 0 && item >= 0 && this.visible.has(thumb.button);
      const found = isHere ? patchAt(this.scene, thumb.run, item, 0, thumb.site, hover!.at!.x, hover!.at!.y) : undefined;
      thumb.cursor.hidden = !found;
      if (found) {
        const size = this.scene.data.items[thumb.run]!.items[item]!.sizes[0]!;
        setBox(thumb.cursor, cellBox(found.grid, found.row, found.col, size));
      }
    }
  }
}
