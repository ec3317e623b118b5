// The right side: the same image at every layer, so that one sees where a concept appears and is lost.
import { h, reveal } from "./dom";
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
  private note = h("p", { class: "note" });

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
    const head = h("div", { class: "head" }, this.note);
    this.root.append(head);
    data.runs.forEach((info, run) => {
      const column = h("div", { class: "column", role: "group", "aria-label": `Layers of ${info.name}` });
      if (data.runs.length > 1) head.append(h("h3", { title: info.name }, info.name));
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
    const { cameras, sizes } = data.items[0]!.items[view.item]!;
    const camera = this.camera;
    const size = sizes[camera] ?? [1, 1];
    const shape = JSON.stringify(data.runs.map((r) => r.key));
    if (shape !== this.shape) {
      this.shape = shape;
      this.build();
    }
    const said = cameras.length > 1 ? `camera ${cameras[camera]}` : "";
    if (this.note.textContent !== said) this.note.textContent = said;
    this.note.title = said && "The camera that was pointed at last";
    this.note.hidden = !said;
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
      if (item >= 0) drawImagePane(thumb.canvas, scene, thumb.run, item, camera, thumb.site);
    }
  }

  /** The camera that is shown: the one pointed at last, as far as this item has it. */
  private get camera(): number {
    const { data, view } = this.scene;
    return view.camera < data.items[0]!.items[view.item]!.cameras.length ? view.camera : 0;
  }

  /** Bring the chosen layer into view. */
  reveal(): void {
    reveal(this.root, this.root.querySelector('[aria-pressed="true"]'), this.root.querySelector<HTMLElement>(".head")?.offsetHeight);
  }

  point(hover: Hover | null): void {
    const camera = this.camera;
    for (const thumb of this.thumbs) {
      const item = this.scene.data.itemIn(thumb.run, this.scene.view.item);
      const isHere = hover?.at?.camera === camera && item >= 0 && this.visible.has(thumb.button);
      const found = isHere ? patchAt(this.scene, thumb.run, item, camera, thumb.site, hover!.at!.x, hover!.at!.y) : undefined;
      thumb.cursor.hidden = !found;
      if (found) {
        const size = this.scene.data.items[thumb.run]!.items[item]!.sizes[camera]!;
        setBox(thumb.cursor, cellBox(found.grid, found.row, found.col, size));
      }
    }
  }
}
