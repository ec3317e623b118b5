// The centre: for every run and camera the image, and beside it the image with its tokens. The pointer's patch is
// outlined in all of them, and in the layer strip.
import { h } from "./dom";
import { signs } from "./editpanel";
import { boxOf, cellBox, drawImagePane, patchAt, type Hover, type Scene } from "./paint";

export interface PaneEvents {
  hover(hover: Hover | null): void;
  pick(hover: Hover, event: { shiftKey: boolean; altKey: boolean }): void;
}

interface Pane {
  root: HTMLElement;
  canvas: HTMLCanvasElement;
  caption: HTMLElement;
  cursor: HTMLElement;
  marks: HTMLElement;
  run: number;
  camera: number;
  isInput: boolean;
  isEdited: boolean;
  row: number;
  col: number;
}

export class Stage {
  private panes: Pane[] = [];
  private shape = "";
  private perRow = 0;
  private scene!: Scene;

  constructor(private root: HTMLElement, private events: PaneEvents) {
    new ResizeObserver(() => {
      if (!this.scene) return;
      this.fit();
      this.draw(this.scene);
    }).observe(root);
  }

  draw(scene: Scene): boolean {
    this.scene = scene;
    const item = scene.data.items[0]!.items[scene.view.item]!;
    const edited = scene.edits.became(0, scene.view.item, scene.view.site) ? scene.edits.facts!.name : "";
    const shape = JSON.stringify([scene.data.runs.length, item.cameras, item.sizes, edited]);
    if (shape !== this.shape) {
      this.shape = shape;
      this.build();
    }
    let isWhole = true;
    for (const pane of this.panes) {
      const number = scene.data.itemIn(pane.run, scene.view.item);
      pane.root.classList.toggle("absent", number < 0);
      if (number < 0) continue;
      const became = pane.isEdited ? scene.edits.became(pane.run, number, scene.view.site) : undefined;
      this.name(pane);
      isWhole = drawImagePane(pane.canvas, scene, pane.run, number, pane.camera, this.siteOf(pane), became) && isWhole;
      this.mark(pane, number);
    }
    return isWhole;
  }

  /** Say of a pane what it shows. Beside another run the layer is named too, as both need not show the same one. */
  private name(pane: Pane): void {
    const { data, view, edits } = this.scene;
    const item = data.items[0]!.items[view.item]!;
    const camera = item.cameras[pane.camera] ?? "", isTwo = data.runs.length > 1;
    const site = this.siteOf(pane), other = pane.run === 0 ? view.site2 : view.site;
    const run = data.runs[pane.run]!.name;
    const has = edits.became(pane.run, view.item, view.site) !== undefined;
    const what = pane.isInput ? (item.cameras.length > 1 ? camera : "input")
      : pane.isEdited ? `after: ${signs(edits.facts!.name)}` : has ? "before" : "concepts";
    const isOdd = isTwo && site !== null && site !== other;
    const label = isTwo && site !== null ? `${run}: ${what} · ${site}${isOdd && pane.run === 1 ? ` ≠ ${other}` : ""}` : what;
    if (pane.caption.textContent !== label) pane.caption.textContent = pane.caption.title = label;
    pane.caption.classList.toggle("odd", isOdd && pane.run === 1);
    // Unlike captions, names stand alone: no two pictures have the same.
    const parts = [isTwo && site !== null ? `${run}: ${what}` : pane.isInput ? "input" : what];
    if (item.cameras.length > 1) parts.push(`camera ${camera}`);
    if (site !== null) parts.push(`layer ${site}`);
    const name = parts.join(", ");
    if (pane.canvas.getAttribute("aria-label") !== name) pane.canvas.setAttribute("aria-label", name);
  }

  private siteOf(pane: Pane): string | null {
    if (pane.isInput) return null;
    return pane.run === 0 ? this.scene.view.site : this.scene.view.site2;
  }

  private build(): void {
    const { data, view } = this.scene;
    const item = data.items[0]!.items[view.item]!;
    this.panes = [];
    data.runs.forEach((_, run) => {
      item.cameras.forEach((_, camera) => {
        // Both runs saw the same image: it is shown once. After an edit its tokens stand beside what they were.
        const has = this.scene.edits.became(run, view.item, view.site) !== undefined;
        for (const kind of [...(run === 0 ? ["input"] : []), "concepts", ...(has ? ["edited"] : [])]) {
          const isInput = kind === "input", isEdited = kind === "edited";
          const canvas = h("canvas", { tabindex: isInput ? -1 : 0, role: "img" });
          const caption = h("figcaption");
          const cursor = h("div", { class: "cursor", hidden: true });
          const marks = h("div", { class: "marks" });
          const root = h("figure", { class: "pane" }, caption, h("div", { class: "frame" }, canvas, marks, cursor));
          const pane: Pane = { root, canvas, caption, cursor, marks, run, camera, isInput, isEdited, row: 0, col: 0 };
          this.listen(pane);
          this.panes.push(pane);
        }
      });
    });
    this.fit();
  }

  /** Give the panes the largest common height at which all of them fit, each at its image's own proportions. */
  private fit(): void {
    const { data, view } = this.scene;
    const sizes = data.items[0]!.items[view.item]!.sizes;
    const gap = 16, caption = 24;
    const width = this.root.clientWidth - 32, height = this.root.clientHeight - 24;
    const aspects = this.panes.map((pane) => (sizes[pane.camera] ? sizes[pane.camera]![1] / sizes[pane.camera]![0] : 1));
    let best = 0, each = 1;
    for (let perRow = 1; perRow <= aspects.length; perRow++) {
      const nRows = Math.ceil(aspects.length / perRow);
      let tall = (height - gap * (nRows - 1)) / nRows - caption;
      for (let at = 0; at < aspects.length; at += perRow) {
        const row = aspects.slice(at, at + perRow);
        tall = Math.min(tall, (width - gap * (row.length - 1)) / row.reduce((sum, a) => sum + a, 0));
      }
      if (tall > best) [best, each] = [tall, perRow];
    }
    best = Math.max(48, Math.floor(best));
    this.panes.forEach((pane, i) => {
      pane.root.style.width = `${Math.floor(best * aspects[i]!)}px`;
      pane.canvas.style.height = `${best}px`;
    });
    if (each === this.perRow && this.panes[0]?.root.isConnected) return; // moving a pane would take its focus away
    this.perRow = each;
    const rows: HTMLElement[] = [];
    this.panes.forEach((pane, i) => {
      if (i % each === 0) rows.push(h("div", { class: "row" }));
      rows.at(-1)!.append(pane.root);
    });
    this.root.replaceChildren(...rows);
  }

  private listen(pane: Pane): void {
    const find = (event: MouseEvent): Hover | null => {
      const box = pane.canvas.getBoundingClientRect();
      // A click knows whole pixels only, a movement fractions of them: both mean the middle of the pixel.
      const x = Math.floor(event.clientX) + 0.5, y = Math.floor(event.clientY) + 0.5;
      return this.hoverAt(pane, (x - box.left) / box.width, (y - box.top) / box.height);
    };
    pane.canvas.addEventListener("pointermove", (event) => this.events.hover(find(event)));
    pane.canvas.addEventListener("pointerleave", () => this.events.hover(null));
    // Focus stays where it is: after a click the arrow keys still change frame and layer.
    pane.canvas.addEventListener("mousedown", (event) => event.preventDefault());
    pane.canvas.addEventListener("click", (event) => {
      const found = find(event);
      if (found) this.events.pick(found, event);
    });
    pane.canvas.addEventListener("contextmenu", (event) => {
      const found = find(event);
      if (!found) return;
      event.preventDefault();
      this.events.pick(found, { shiftKey: false, altKey: true });
    });
    // With the keyboard: arrows move over the patches, Enter clicks, Shift+Enter adds, X takes away.
    pane.canvas.addEventListener("focus", () => this.step(pane, 0, 0));
    pane.canvas.addEventListener("blur", () => this.events.hover(null));
    pane.canvas.addEventListener("keydown", (event) => {
      const steps: Record<string, [number, number]> = {
        ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0],
      };
      const step = steps[event.key];
      const isPick = event.key === "Enter" || event.key.toLowerCase() === "x";
      if ((!step && !isPick) || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      event.stopPropagation();
      const found = this.step(pane, step?.[0] ?? 0, step?.[1] ?? 0);
      if (isPick && found) {
        this.events.pick(found, { shiftKey: event.shiftKey && event.key === "Enter", altKey: event.key !== "Enter" });
      }
    });
  }

  private step(pane: Pane, rows: number, cols: number): Hover | null {
    const site = this.siteOf(pane) ?? this.scene.view.site;
    const number = this.scene.data.itemIn(pane.run, this.scene.view.item);
    const grid = this.scene.data.place(pane.run, site, number)?.template.grids.find((g) => g.camera === pane.camera);
    if (!grid) return null;
    pane.row = Math.min(grid.rows - 1, Math.max(0, pane.row + rows));
    pane.col = Math.min(grid.cols - 1, Math.max(0, pane.col + cols));
    const size = this.scene.data.items[pane.run]!.items[number]!.sizes[pane.camera]!;
    const box = cellBox(grid, pane.row, pane.col, size);
    const hover = this.hoverAt(pane, box.left + box.width / 2, box.top + box.height / 2);
    this.events.hover(hover);
    return hover;
  }

  private hoverAt(pane: Pane, x: number, y: number): Hover | null {
    const found = this.find(pane.run, { camera: pane.camera, x, y });
    if (!found) return null;
    pane.row = found.row;
    pane.col = found.col;
    return found.hover;
  }

  private find(run: number, at: { camera: number; x: number; y: number }): { hover: Hover; row: number; col: number } | null {
    const { data, view } = this.scene;
    const site = run === 0 ? view.site : view.site2;
    const item = data.itemIn(run, view.item);
    const found = item < 0 ? undefined : patchAt(this.scene, run, item, at.camera, site, at.x, at.y);
    if (!found) return null;
    const where = `${site} · row ${found.row + 1}, column ${found.col + 1}`;
    return { hover: { run, item, ref: { run, site, token: found.token }, at, where }, row: found.row, col: found.col };
  }

  /** What a pointer that has not moved is over now: another frame or layer may be shown. */
  renew(hover: Hover): Hover | null {
    return (hover.at && this.find(hover.run, hover.at)?.hover) ?? null;
  }

  /** Outline the patch under the pointer in every pane. */
  point(hover: Hover | null): void {
    for (const pane of this.panes) {
      const site = pane.run === 0 ? this.scene.view.site : this.scene.view.site2;
      const item = this.scene.data.itemIn(pane.run, this.scene.view.item);
      const isHere = hover?.at && hover.at.camera === pane.camera && item >= 0;
      const found = isHere ? patchAt(this.scene, pane.run, item, pane.camera, site, hover.at!.x, hover.at!.y) : undefined;
      pane.cursor.hidden = !found;
      if (found) {
        const size = this.scene.data.items[pane.run]!.items[item]!.sizes[pane.camera]!;
        setBox(pane.cursor, cellBox(found.grid, found.row, found.col, size));
      }
    }
  }

  private mark(pane: Pane, item: number): void {
    const { view } = this.scene;
    const all = [...view.clicks, ...(view.query ? [{ ...view.query, positive: true }] : [])];
    const made: HTMLElement[] = [];
    for (const one of all) {
      if (one.run !== pane.run) continue;
      const box = boxOf(this.scene, pane.run, item, one.site, one.token);
      if (!box || box.camera !== pane.camera) continue;
      const mark = h("div", { class: one.positive ? "mark in" : "mark out" }, one.positive ? "" : "−");
      if (view.clicks.length && one.positive) mark.textContent = "+";
      setBox(mark, box);
      made.push(mark);
    }
    pane.marks.replaceChildren(...made);
  }
}

export function setBox(element: HTMLElement, box: { left: number; top: number; width: number; height: number }): void {
  element.style.left = `${100 * box.left}%`;
  element.style.top = `${100 * box.top}%`;
  element.style.width = `${100 * box.width}%`;
  element.style.height = `${100 * box.height}%`;
}
