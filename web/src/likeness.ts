// Similarity to a clicked token, or the mask of several: asked for the shown layers first, then for all.
import { getMask, getSimilar } from "./api";
import type { Data } from "./data";
import type { View } from "./store";
import type { SimilarHeader } from "./types";

export class Likeness {
  /** Per `run|site`: uint8 per token. Similarity: 255 alike; mask: above 128 is in. */
  values = new Map<string, Uint8Array>();
  kind: "none" | "similar" | "mask" = "none";
  message = "";
  /** Milliseconds from the click to the shown layers on screen, and what the server needed of them. */
  clickMs = 0;
  serverMs = 0;
  allMs = 0;
  private asked = "";
  private abort = new AbortController();

  constructor(
    private data: Data,
    private shown: () => void,
    private arrived: () => void,
    private failed: (message: string) => void,
  ) {}

  /** Ask for what the view needs, unless that is what was asked last. */
  update(view: View): void {
    const key = JSON.stringify([view.query, view.clicks, view.method, view.eig]);
    if (key === this.asked) return;
    this.asked = key;
    this.abort.abort();
    this.abort = new AbortController();
    this.clickMs = this.serverMs = this.allMs = 0;
    if (!view.query && !view.clicks.length) {
      this.values.clear();
      this.kind = "none";
      this.message = "";
      return;
    }
    void this.load(view, this.abort.signal);
  }

  private async load(view: View, signal: AbortSignal): Promise<void> {
    const started = performance.now();
    const shown = [...new Set([view.query?.site ?? view.clicks.at(-1)!.site, view.site])].join(",");
    try {
      const first = await this.ask(view, shown, signal);
      this.values = new Map();
      this.take(first);
      this.serverMs = first.header.ms;
      this.shown();
      requestAnimationFrame(() => {
        this.clickMs = performance.now() - started;
        this.describe(first.header);
        this.arrived();
      });
      for (let tries = 0; tries < 600; tries++) {
        const all = await this.ask(view, "*", signal);
        this.take(all);
        this.allMs = performance.now() - started;
        this.describe(all.header);
        this.arrived();
        if (!all.header.pending?.length) return;
        this.message += ` · measuring ${all.header.pending.length} more layers`;
        await new Promise((done) => setTimeout(done, 1000));
      }
    } catch (error) {
      if (!signal.aborted) this.failed((error as Error).message);
    }
  }

  private ask(view: View, sites: string, signal: AbortSignal) {
    if (view.clicks.length) return getMask(this.data.runs, view.clicks, this.eig(view), sites, signal);
    return getSimilar(this.data.runs[view.query!.run]!, view.query!, view.method, this.eig(view), sites, signal);
  }

  private eig(view: View): number {
    return Math.min(view.eig, this.data.runs[0]!.n_eig);
  }

  private take(answer: { header: SimilarHeader; arrays: Uint8Array[] }): void {
    this.kind = answer.header.n_in === undefined ? "similar" : "mask";
    answer.header.parts.forEach((part, i) => {
      const run = this.data.runs.findIndex((r) => r.key === part.run);
      this.values.set(`${run}|${part.site}`, answer.arrays[i]!);
    });
  }

  private describe(header: SimilarHeader): void {
    let n = 0;
    for (const values of this.values.values()) n += values.length;
    const times = `${Math.round(this.clickMs)} ms${this.allMs ? `, all layers ${Math.round(this.allMs)} ms` : ""}`;
    if (this.kind === "mask") {
      this.message = `Mask: ${(header.n_in ?? 0).toLocaleString("en")} of ${n.toLocaleString("en")} tokens · ${times}`;
      return;
    }
    const how = header.method === "concepts" ? "cosine of eigenvectors" : "cosine of activations";
    const rank = header.rank == null ? "" : `, other layers by a sketch (rank correlation with the exact one ≥ ${(Math.floor(1000 * header.rank) / 1000).toFixed(3)})`;
    this.message = `Bright is similar: ${how}${rank} · ${n.toLocaleString("en")} tokens · ${times}`;
  }
}
