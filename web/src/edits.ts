// Trying an edit of the model: asks the server to start, watches how far it is, keeps what came of it.
import { getEdit, getEditChoices, getEditResult, startEdit, stopEdit } from "./api";
import type { Data } from "./data";
import { doses } from "./dose";
import type { View } from "./store";
import type { EditChoices, EditFacts, JobState } from "./types";

const POLL_MS = 200;

export class Edits {
  choices: EditChoices | undefined;
  job: JobState | undefined;
  facts: EditFacts | undefined;
  error = "";
  /** Which run the facts belong to. */
  run = 0;
  private nearest = new Map<string, Int32Array>();
  private isAsked = false;

  constructor(private data: Data, private arrived: () => void) {}

  get isRunning(): boolean {
    return this.job?.state === "running";
  }

  /** Fetch what can be tried, once. */
  open(): void {
    if (this.isAsked) return;
    this.isAsked = true;
    getEditChoices(this.data.runs[0]!).then(
      (found) => { this.choices = found; this.arrived(); },
      (error: Error) => { this.error = error.message; this.arrived(); },
    );
  }

  async start(view: View): Promise<void> {
    if (this.isRunning) return;
    this.error = "";
    const { edit } = view, run = this.data.runs[0]!;
    const clicks = view.clicks.length ? view.clicks : view.query ? [{ ...view.query, positive: true }] : [];
    const mine = clicks.filter((c) => c.run === 0);
    const site = edit.kind === "tokens" ? mine[0]?.site ?? view.site : edit.kind === "module" ? edit.module : view.site;
    const ask = {
      run: run.key, item: view.item, kind: edit.kind, site, where: edit.where, strength: edit.strength, frames: edit.frames,
      scope: edit.scope, k: view.k, group: edit.group, away_from: edit.from, to: edit.to, dictionary: edit.dictionary,
      doses: edit.curve && edit.kind !== "attention" && edit.kind !== "module" ? doses(edit.strength) : [], latent: edit.latent, source: edit.source, reader: edit.reader, blocks: edit.blocks, mean: edit.mean,
      clicks: edit.kind === "tokens"
        ? mine.map((c) => ({ run: run.key, site: c.site, token: c.token, positive: c.positive })) : [],
    };
    try {
      this.job = await startEdit(ask);
      this.arrived();
      await this.watch();
    } catch (error) {
      this.job = undefined;
      this.error = (error as Error).message;
    }
    this.arrived();
  }

  private async watch(): Promise<void> {
    const number = this.job!.job;
    while (this.job!.state === "running") {
      await new Promise((done) => setTimeout(done, POLL_MS));
      this.job = await getEdit(number);
      this.arrived();
    }
    if (this.job!.state === "failed") this.error = this.job!.text;
    if (this.job!.state !== "done") return;
    const { facts, nearest } = await getEditResult(number);
    this.facts = facts;
    this.nearest = nearest;
  }

  async stop(): Promise<void> {
    if (this.job && this.isRunning) this.job = await stopEdit(this.job.job);
    this.arrived();
  }

  clear(): void {
    this.facts = undefined;
    this.nearest.clear();
    this.error = "";
    this.arrived();
  }

  /** Return what the tokens of an item have become at a site: numbers of tokens, -1 for what is like none. */
  became(run: number, item: number, site: string): Int32Array | undefined {
    return this.facts && run === this.run && item === this.facts.item ? this.nearest.get(site) : undefined;
  }
}
