// The left side: episodes (or single images), what is known of them, and what a person says about them.
import { addReview, getReviews, imageUrl, showImage } from "./api";
import type { Data } from "./data";
import { h, reveal } from "./dom";
import type { Item, Reviews, Verdict } from "./types";

interface Unit {
  id: string;
  title: string;
  note: string;
  success: boolean | null;
  outcome: string | null;
  labels: string[];
  items: number[];
}

const MAX_SHOWN = 300;
const MAX_LABELS = 3; // of an image, in the list; Find looks through all of them
const VERDICTS: { review: Verdict; key: string; name: string }[] = [
  { review: "success", key: "1", name: "Success" },
  { review: "failure", key: "2", name: "Failure" },
  { review: "drop", key: "3", name: "Drop" },
];

export class ItemsView {
  units: Unit[];
  private unitOf = new Map<number, number>();
  private reviews: Reviews["reviews"] = {};
  private filter = "";
  private nShown = MAX_SHOWN;
  private current = -1;
  private list = h("div", { class: "list" });
  /** Reasons that were typed and are not saved, by unit: each belongs to what was shown when it was typed. */
  private drafts = new Map<string, string>();
  private reason = h("input", { type: "text", placeholder: "Why (optional)", "aria-label": "Why, kept with the label", maxlength: 400,
    input: () => this.drafts.set(this.units[this.current]!.id, this.reason.value) });
  private buttons: HTMLButtonElement[];
  private said = h("p", { class: "note", "aria-live": "polite" });

  constructor(
    private root: HTMLElement,
    private data: Data,
    private choose: (item: number) => void,
    private failed: (message: string) => void,
  ) {
    this.units = this.group(data.items[0]!.items);
    this.units.forEach((unit, i) => unit.items.forEach((item) => this.unitOf.set(item, i)));
    const isEpisodes = this.units.some((u) => u.items.length > 1);
    const search = h("input", {
      type: "search", placeholder: isEpisodes ? "Find an episode" : "Find an image", "aria-label": "Find",
      input: () => {
        this.filter = search.value.trim().toLowerCase();
        this.nShown = MAX_SHOWN;
        this.fill();
      },
    });
    this.buttons = VERDICTS.map(({ review, key, name }) =>
      h("button", { type: "button", class: `verdict ${review}`, "aria-keyshortcuts": key, "aria-pressed": "false", click: () => void this.review(review) },
        name, h("kbd", {}, key)));
    this.root.append(
      h("div", { class: "search" }, search),
      this.list,
      h("div", { class: "review" }, h("h3", {}, isEpisodes ? "This episode is a" : "This image is a"),
        h("div", { class: "verdicts" }, ...this.buttons), this.reason, this.said),
    );
    void getReviews().then((found) => this.take(found), (error: Error) => this.failed(error.message));
    this.fill();
  }

  private group(items: Item[]): Unit[] {
    const found = new Map<string, Unit>();
    items.forEach((item, i) => {
      const key = item.episode === null ? `image ${i}` : `episode ${item.episode}`;
      const prompt = this.data.items[0]!.prompts[item.prompt];
      let unit = found.get(key);
      if (!unit) {
        const title = item.episode === null ? item.id : `Episode ${item.episode}`;
        unit = { id: item.unit, title, note: prompt ?? "", success: null, outcome: null, labels: [], items: [] };
        found.set(key, unit);
      }
      unit.items.push(i);
      unit.success = item.success ?? unit.success;
      unit.outcome = item.outcome ?? unit.outcome;
      if (item.labels) unit.labels.push(...item.labels);
    });
    for (const unit of found.values()) unit.items.sort((a, b) => (items[a]!.step ?? a) - (items[b]!.step ?? b));
    return [...found.values()];
  }

  unitAt(item: number): number {
    return this.unitOf.get(item) ?? 0;
  }

  draw(item: number): void {
    const number = this.unitAt(item);
    if (number === this.current) return;
    this.current = number;
    if (number >= this.nShown) this.nShown = number + MAX_SHOWN;
    this.fill();
    this.fields();
    this.said.textContent = "";
    reveal(this.list, this.list.querySelector('[aria-current="true"]'));
  }

  /** Show what is saved of the chosen unit, or what was typed for it. */
  private fields(): void {
    const unit = this.units[this.current];
    if (!unit) return;
    const saved = this.reviews[unit.id];
    const reason = this.drafts.get(unit.id) ?? saved?.reason ?? "";
    if (this.reason.value !== reason) this.reason.value = reason;
    VERDICTS.forEach(({ review }, i) => this.buttons[i]!.setAttribute("aria-pressed", String(saved?.review === review)));
  }

  private fill(): void {
    const fits = (u: Unit) => !this.filter || `${u.title} ${u.id} ${u.note} ${u.outcome ?? ""} ${u.labels.join(" ")}`.toLowerCase().includes(this.filter);
    const shown = this.units.map((unit, i) => ({ unit, i })).filter(({ unit }) => fits(unit));
    const rows: HTMLElement[] = shown.slice(0, this.nShown).map(({ unit, i }) => this.row(unit, i));
    if (shown.length > this.nShown) {
      rows.push(h("button", { type: "button", class: "more", click: () => { this.nShown += MAX_SHOWN; this.fill(); } },
        `Show more (${(shown.length - this.nShown).toLocaleString("en")})`));
    }
    if (!rows.length) rows.push(h("p", { class: "note" }, "Nothing fits."));
    this.list.replaceChildren(...rows);
  }

  private row(unit: Unit, i: number): HTMLElement {
    const review = this.reviews[unit.id];
    const middle = unit.items[Math.floor(unit.items.length / 2)]!;
    const facts: (Node | string | null)[] = [];
    if (unit.outcome) facts.push(h("span", { class: unit.success ? "good" : "bad" }, unit.outcome));
    if (unit.items.length > 1) facts.push(h("span", {}, `${unit.items.length} frames`));
    // Those of an episode are mostly where its file was and the like: Find looks through them, the list spares them.
    const isImage = this.data.items[0]!.items[middle]!.episode === null;
    for (const label of isImage ? unit.labels.slice(0, MAX_LABELS) : []) facts.push(h("span", { class: "label", title: label }, label));
    if (review) facts.push(h("span", { class: `chip ${review.review}`, title: review.reason }, review.review));
    const thumb = this.data.items[0]!.items[middle]!.cameras.length
      ? this.thumb(middle)
      : null;
    return h("button", {
      type: "button", class: "unit", "aria-current": i === this.current ? "true" : undefined,
      click: () => this.choose(unit.items[0]!),
    }, thumb, h("span", { class: "text" },
      h("span", { class: "title" }, unit.title),
      unit.note ? h("span", { class: "note prompt" }, unit.note) : null,
      facts.length ? h("span", { class: "facts" }, ...facts) : null));
  }

  async review(verdict: Verdict): Promise<void> {
    const unit = this.units[this.current];
    if (!unit) return;
    const reason = this.reason.value;
    try {
      const found = await addReview(unit.id, verdict, reason);
      if (this.drafts.get(unit.id) === reason) this.drafts.delete(unit.id);
      this.take(found);
      this.said.textContent = `${unit.title}: ${verdict}, saved.`;
    } catch (error) {
      this.failed((error as Error).message);
    }
  }

  private take(found: Reviews): void {
    this.reviews = found.reviews;
    this.fill();
    this.fields();
  }

  private thumb(item: number): HTMLImageElement {
    const image = h("img", { alt: "", loading: "lazy", width: 48, height: 48 });
    showImage(image, imageUrl(this.data.runs[0]!, item, 0));
    return image;
  }
}
