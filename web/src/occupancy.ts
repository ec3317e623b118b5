// Which share of the image each group has, frame by frame, as a picture that is one pixel wide for each frame: thousands
// of rectangles take longer to draw than a slider may.
import type { Scene } from "./paint";
import { hexes } from "./paint";

const MOST = 128; // bands of so many layers and K are kept
const FAINT = 38; // of 255, what is not of the group under the pointer

export class Occupancy {
  private shares = new Map<string, Float32Array[]>();

  /** Return the band at the shown layer and K, `tall` pixels high; undefined where the colours are not there yet. */
  band(scene: Scene, items: number[], tall: number): HTMLCanvasElement | undefined {
    const { data, view, group } = scene;
    const colors = hexes(data.groupColors(0, view.k));
    const shares = this.of(scene, items);
    if (!shares || !colors.length) return undefined;
    const canvas = document.createElement("canvas");
    canvas.width = items.length;
    canvas.height = tall;
    const ctx = canvas.getContext("2d")!;
    const pixels = ctx.createImageData(items.length, tall);
    shares.forEach((share, f) => {
      let sum = 0, y = 0;
      for (let k = 0; k < view.k; k++) {
        sum += share[k]!;
        const alpha = group >= 0 && group !== k ? FAINT : 255;
        for (const end = Math.round(sum * tall); y < end; y++) {
          const at = 4 * (y * items.length + f);
          pixels.data[at] = colors[3 * k]!;
          pixels.data[at + 1] = colors[3 * k + 1]!;
          pixels.data[at + 2] = colors[3 * k + 2]!;
          pixels.data[at + 3] = alpha;
        }
      }
    });
    ctx.putImageData(pixels, 0, 0);
    return canvas;
  }

  private of({ data, view }: Scene, items: number[]): Float32Array[] | undefined {
    const { site, k } = view;
    const key = `${site}|${k}|${items[0]}|${items.length}`;
    const known = this.shares.get(key);
    if (known) return known;
    const labels = data.labels(0, site, k);
    if (!labels || !data.place(0, site, items[0]!)) return undefined;
    const shares = items.map((item) => {
      const share = new Float32Array(k);
      const place = data.place(0, site, item);
      let total = 0;
      for (const grid of place?.template.grids ?? []) {
        for (const index of grid.index) {
          if (index < 0) continue;
          share[labels[place!.start + index]!]! += 1;
          total++;
        }
      }
      return total ? share.map((v) => v / total) : share;
    });
    this.shares.set(key, shares);
    if (this.shares.size > MOST) this.shares.delete(this.shares.keys().next().value!);
    return shares;
  }
}
