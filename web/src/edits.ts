// Trying an edit of the model: asks the server to start, watches how far it is, keeps what came of it.
import { getEdit, getEditChoices, getEditResult, startEdit, stopEdit } from "./api";
import type { Data } from "./data";
import { doses } from "./dose";
import type { View } from "./store";
import type { Click, EditChoices, EditFacts, JobState } from "./types";

const POLL_MS = 200;

export class Edits {
  choices: EditChoices | undefined;
  job: JobState | undefined;
  facts: EditFacts | undefined;
  error = "";
  /** What the form asked for when the error was first shown, and for the facts, see `keyOf`: it may say something else
   * by now. "": not shown yet; undefined: the error has nothing to do with the form. */
  private errorKey: string | undefined;
  private factsKey = "";
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

  /** The layer at which an edit steers: that of the clicks, or the shown one (for words the last that has any). */
  siteOf(view: View): string {
    if (view.edit.kind === "words") return this.data.wordSite(0, view.site);
    return view.edit.kind === "tokens" ? this.clicked(view)[0]?.site ?? view.site : view.site;
  }

  /** Tokens of the first run that are clicked. */
  clicked(view: View): Click[] {
    const clicks = view.clicks.length ? view.clicks : view.query ? [{ ...view.query, positive: true }] : [];
    return clicks.filter((c) => c.run === 0);
  }

  /** The message to the server. */
  private ask(view: View) {
    const { edit } = view, run = this.data.runs[0]!;
    const mine = this.clicked(view), site = edit.kind === "module" ? edit.module : this.siteOf(view);
    return {
      run: run.key, item: view.item, kind: edit.kind, site, where: edit.where, strength: edit.strength, frames: edit.frames,
      scope: edit.scope, k: view.k, group: edit.group, away_from: edit.from, to: edit.to, dictionary: edit.dictionary,
      doses: edit.curve && edit.kind !== "attention" && edit.kind !== "module" ? doses(edit.strength) : [], latent: edit.latent, source: edit.source, reader: edit.reader, blocks: edit.blocks, mean: edit.mean,
      clicks: edit.kind === "tokens"
        ? mine.map((c) => ({ run: run.key, site: c.site, token: c.token, positive: c.positive })) : [],
    };
  }

  /** What the form asks for, on whichever frame. */
  private keyOf(view: View): string {
    const { item: _, ...rest } = this.ask(view), { kind } = rest;
    const unused: Record<string, unknown> = { k: 0, group: 0, away_from: "", to: "", dictionary: "", latent: 0, source: "", reader: "", blocks: "", mean: false };
    const used: Record<string, string[]> = { group: ["k", "group"], words: ["away_from", "to"], latent: ["dictionary", "latent"],
      attention: ["source", "reader", "blocks"], module: ["mean"] };
    for (const name of used[kind] ?? []) delete unused[name];
    const knocks = kind === "attention" || kind === "module";
    const fixed = knocks ? { where: "", strength: 0 } : {};
    return JSON.stringify({ ...rest, ...unused, ...fixed, ...(kind === "attention" || kind === "latent" ? { site: "" } : {}) });
  }

  /** Whether the form still asks for what the shown result is of. Without clicks it asks for nothing else. */
  isCurrent(view: View): boolean {
    if (view.edit.kind === "tokens" && !this.clicked(view).length) return this.factsKey.includes('"kind":"tokens"');
    return this.keyOf(view) === this.factsKey;
  }

  /** Forget an error that is not of what the form now asks for. */
  check(view: View): void {
    if (this.errorKey === undefined) return;
    const key = this.keyOf(view);
    if (!this.errorKey) this.errorKey = key;
    else if (this.errorKey !== key) this.fail("");
  }

  private fail(message: string): void {
    this.error = message;
    this.errorKey = message ? "" : undefined;
  }

  async start(view: View): Promise<void> {
    if (this.isRunning) return;
    const key = this.keyOf(view);
    this.fail("");
    try {
      this.job = await startEdit(this.ask(view));
      this.arrived();
      await this.watch(key);
    } catch (error) {
      this.job = undefined;
      this.fail((error as Error).message);
    }
    this.arrived();
  }

  private async watch(key: string): Promise<void> {
    const number = this.job!.job;
    while (this.job!.state === "running") {
      await new Promise((done) => setTimeout(done, POLL_MS));
      this.job = await getEdit(number);
      this.arrived();
    }
    if (this.job!.state === "failed") this.fail(this.job!.text);
    if (this.job!.state !== "done") return;
    const { facts, nearest } = await getEditResult(number);
    this.facts = facts;
    this.factsKey = key;
    this.nearest = nearest;
  }

  async stop(): Promise<void> {
    if (this.job && this.isRunning) this.job = await stopEdit(this.job.job);
    this.arrived();
  }

  clear(): void {
    this.facts = undefined;
    this.nearest.clear();
    this.fail("");
    this.arrived();
  }

  /** Return what the tokens of an item have become at a site: numbers of tokens, -1 for what is like none. */
  became(run: number, item: number, site: string): Int32Array | undefined {
    return this.facts && run === this.run && item === this.facts.item ? this.nearest.get(site) : undefined;
  }
}
