// The time line of an episode: what was commanded, the gripper, which concepts the image is made of, and what happened.
import { css, h } from "./dom";
import { Occupancy } from "./occupancy";
import type { Scene } from "./paint";
import { decimalsFor, niceTicks, signed } from "./ticks";
import type { Episode, Measured, Series } from "./types";

const LEFT = 80, RIGHT = 16;
const AXIS = 18; // below all, with the time
// Distinct for most colour-blind readers, and readable on light and dark ground.
const LINES = ["#3b7dd8", "#d9822b", "#2a9d6f", "#c2548f", "#8a6fd1", "#7d8794", "#b8a02e", "#4aa7b5"];

export class Timeline {
  private canvas = h("canvas", { "aria-hidden": "true" });
  private slider = h("input", { type: "range", min: 0, value: 0, step: 1, "aria-label": "Time: frame of the episode" });
  private play = h("button", { type: "button", class: "play", "aria-keyshortcuts": "Space" }, "Play");
  private output = h("output", {});
  private legend = h("div", { class: "legend" });
  private note = h("span", { class: "own" }); // in the legend: what the band of concepts is drawn with
  private show = h("select", { "aria-label": "Curves" }, h("option", { value: "actions" }, "actions"), h("option", { value: "states" }, "states"));
  private timer = 0;
  private scene!: Scene;
  private occupancy = new Occupancy();
  /** All of the chart but the line at the current frame; drawn again when one of the values of `drawn` changes. */
  private sheet = document.createElement("canvas");
  private drawn: unknown[] = [];
  private top = 0;
  private ink = "";
  items: number[] = [];

  constructor(private root: HTMLElement, private choose: (item: number) => void) {
    root.append(h("div", { class: "transport" }, this.play, this.slider, this.output, this.show), this.legend,
      h("div", { class: "chart" }, this.canvas));
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.play.addEventListener("click", () => this.toggle());
    this.show.addEventListener("change", () => this.draw(this.scene, this.items));
    let isDragging = false;
    const seek = (event: PointerEvent) => {
      const box = this.canvas.getBoundingClientRect();
      const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
      this.go(Math.round(share * (this.items.length - 1)));
    };
    this.canvas.addEventListener("pointerdown", (event) => {
      isDragging = true;
      this.canvas.setPointerCapture(event.pointerId);
      seek(event);
    });
    this.canvas.addEventListener("pointermove", (event) => isDragging && seek(event));
    this.canvas.addEventListener("pointerup", () => (isDragging = false));
    new ResizeObserver(() => this.scene && this.draw(this.scene, this.items)).observe(root);
  }

  private go(frame: number): void {
    const found = this.items[Math.min(this.items.length - 1, Math.max(0, frame))];
    if (found !== undefined) this.choose(found);
  }

  toggle(): void {
    if (this.timer) {
      clearInterval(this.timer);
      this.timer = 0;
    } else if (this.items.length > 1) {
      const { data, view } = this.scene;
      const [a, b] = [this.items[0]!, this.items[1]!].map((i) => data.items[0]!.items[i]!.time);
      const gap = a != null && b != null && b > a ? 1000 * (b - a) : 200;
      if (this.items.indexOf(view.item) === this.items.length - 1) this.go(0);
      this.timer = window.setInterval(() => {
        const next = this.items.indexOf(this.scene.view.item) + 1;
        if (next >= this.items.length) this.toggle();
        else this.go(next);
      }, Math.min(1000, Math.max(40, gap)));
    }
    this.play.textContent = this.timer ? "Pause" : "Play";
  }

  draw(scene: Scene, items: number[]): void {
    this.scene = scene;
    if (this.timer && items !== this.items) this.toggle();
    this.items = items;
    this.root.hidden = items.length < 2;
    if (items.length < 2) return;
    const { data, view } = scene;
    const at = Math.max(0, items.indexOf(view.item));
    const item = data.items[0]!.items[view.item]!;
    this.slider.max = String(items.length - 1);
    this.slider.value = String(at);
    const time = item.time === null ? "" : ` · ${item.time.toFixed(1)} s`;
    this.output.textContent = `frame ${at + 1} of ${items.length}${time}`;
    this.slider.setAttribute("aria-valuetext", this.output.textContent);
    const episode = item.episode === null ? undefined : data.episode(0, item.episode);
    const hasStates = !!episode?.states.length, hasActions = !!episode?.actions.length;
    this.show.hidden = !(hasStates && hasActions);
    const curves = (this.show.value === "states" && hasStates) || !hasActions ? episode?.states : episode?.actions;
    const measured = item.episode === null ? undefined : data.measured(0, item.episode);
    this.chart(episode, measured, (curves ?? []).slice(0, LINES.length), at);
  }

  private chart(episode: Episode | undefined, measured: Measured | undefined, curves: Series[], at: number): void {
    this.canvas.classList.toggle("tall", !!measured && (measured.changes !== null || measured.anomaly !== null));
    const ratio = Math.min(2, devicePixelRatio || 1);
    const width = this.canvas.clientWidth, height = this.canvas.clientHeight;
    const { data, view, group } = this.scene;
    const drawn = [width, height, ratio, view.theme, matchMedia("(prefers-color-scheme: dark)").matches, this.items, episode,
      measured, this.show.value, view.site, view.k, group, data.labels(0, view.site, view.k), data.place(0, view.site, this.items[0]!)?.template];
    if (drawn.some((value, i) => value !== this.drawn[i])) {
      this.drawn = drawn;
      this.canvas.width = this.sheet.width = Math.round(width * ratio);
      this.canvas.height = this.sheet.height = Math.round(height * ratio);
      this.still(episode, measured, curves, width, height, ratio);
    }
    const ctx = this.canvas.getContext("2d")!;
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.clearRect(0, 0, this.canvas.width, this.canvas.height);
    ctx.drawImage(this.sheet, 0, 0);
    ctx.scale(ratio, ratio);
    ctx.strokeStyle = this.ink;
    ctx.lineWidth = 1.5;
    const here = LEFT + ((width - LEFT - RIGHT) * at) / Math.max(1, this.items.length - 1);
    ctx.beginPath();
    ctx.moveTo(here, this.top - 4);
    ctx.lineTo(here, height - AXIS);
    ctx.stroke();
    const { k, color } = view;
    this.note.textContent = `concepts: ${k} groups${color === "palette" ? ", in the colours of the cut" : ""}`;
    if (this.legend.dataset.names !== curves.map((c) => c.name).join()) {
      this.legend.dataset.names = curves.map((c) => c.name).join();
      this.legend.replaceChildren(...curves.map((c, i) => {
        const swatch = h("span", { class: "line" });
        swatch.style.background = LINES[i]!;
        return h("span", {}, swatch, `${c.name} `, h("b", {}));
      }), this.note);
    }
    curves.forEach((c, i) => {
      const low = Math.min(...c.values), high = Math.max(...c.values);
      const digits = decimalsFor(high - low || Math.max(Math.abs(low), Math.abs(high)));
      this.legend.children[i]!.querySelector("b")!.textContent = signed(c.values[at] ?? 0, digits);
    });
  }

  /** Draw all of the chart that does not move with the time. */
  private still(
    episode: Episode | undefined, measured: Measured | undefined, curves: Series[], width: number, height: number, ratio: number,
  ): void {
    const ctx = this.sheet.getContext("2d")!;
    ctx.scale(ratio, ratio);
    ctx.font = `12px ${css("--sans")}`;
    ctx.textBaseline = "middle";
    const muted = css("--muted"), text = css("--text"), line = css("--line"), accent = css("--accent");
    const n = this.items.length, span = width - LEFT - RIGHT;
    const x = (frame: number) => LEFT + (span * frame) / Math.max(1, n - 1);
    const frameOf = new Map((episode?.steps ?? []).map((step, i) => [step, i]));
    const hasEvents = !!episode && episode.events.length > 0;
    const names = this.placeNames(ctx, episode, (step) => frameOf.get(step), x, width);
    const top = hasEvents ? 18 : 4;
    this.top = top;
    this.ink = text;
    const bands: { name: string; tall: number }[] = [{ name: "concepts", tall: 24 }];
    if (episode?.closed) bands.unshift({ name: "closed", tall: 12 });
    if (measured?.changes) bands.push({ name: "changes", tall: 10 });
    if (measured?.anomaly) bands.push({ name: "anomaly", tall: 20 });
    const bandsTop = height - AXIS - bands.reduce((sum, band) => sum + band.tall + 4, 0);
    const label = (name: string, y: number) => {
      ctx.fillStyle = muted;
      ctx.textAlign = "right";
      ctx.fillText(name, LEFT - 8, y);
    };
    const bottom = this.axis(ctx, episode, height - AXIS, x, muted);
    if (curves.length) this.curves(ctx, curves, x, top, bandsTop - 8, { muted, line, label, right: width - RIGHT });
    let y = bandsTop + 4;
    for (const { name: band, tall } of bands) {
      if (band === "concepts") this.concepts(ctx, y, tall, span, ratio);
      else if (band === "anomaly") this.anomaly(ctx, measured!, y, tall, x, text);
      else if (band === "changes") this.changes(ctx, measured!.changes!, y, tall, x, text);
      else {
        ctx.fillStyle = css("--surface");
        ctx.fillRect(LEFT, y, span, tall);
        ctx.fillStyle = muted;
        const step = span / Math.max(1, n - 1);
        episode!.closed!.forEach((is, f) => {
          if (!is) return;
          const from = Math.max(LEFT, x(f) - step / 2), to = Math.min(width - RIGHT, x(f) + step / 2);
          ctx.fillRect(from, y, to - from, tall);
        });
      }
      label(band, y + tall / 2);
      y += tall + 4;
    }
    ctx.strokeStyle = accent;
    ctx.setLineDash([3, 3]);
    ctx.lineWidth = 1;
    for (const { name, from, frames } of names) {
      for (const frame of frames) {
        const ex = Math.round(x(frame)) + 0.5;
        ctx.beginPath();
        ctx.moveTo(ex, 14);
        ctx.lineTo(ex, bottom);
        ctx.stroke();
      }
      ctx.fillStyle = accent;
      ctx.textAlign = "left";
      ctx.fillText(name, from, 7);
    }
    ctx.setLineDash([]);
  }

  /** The time under the chart: seconds where they are known, else steps. Returns where the chart ends. */
  private axis(
    ctx: CanvasRenderingContext2D, episode: Episode | undefined, y: number, x: (frame: number) => number, muted: string,
  ): number {
    const { data } = this.scene;
    const times = this.items.map((i) => data.items[0]!.items[i]!.time);
    const steps = this.items.map((i, f) => data.items[0]!.items[i]!.step ?? episode?.steps[f] ?? f);
    const rises = (values: (number | null)[]) => values.every((v, i) => v !== null && (i === 0 || v > values[i - 1]!));
    const isTime = rises(times);
    const at = isTime ? (times as number[]) : rises(steps) ? steps : steps.map((_, f) => f);
    const width = x(at.length - 1) - x(0);
    const { values, digits } = niceTicks(at[0]!, at.at(-1)!, Math.min(11, Math.max(2, Math.floor(width / 56))), !isTime);
    ctx.fillStyle = muted;
    ctx.textAlign = "right";
    ctx.fillText(isTime ? "seconds" : "step", LEFT - 24, y + 10); // the first number needs room
    let f = 0;
    for (const value of values) {
      while (f < at.length - 2 && at[f + 1]! < value) f++;
      const share = (value - at[f]!) / (at[f + 1]! - at[f]!);
      const tx = Math.round(x(f + share)) + 0.5;
      ctx.strokeStyle = muted;
      ctx.lineWidth = 1;
      ctx.beginPath();
      ctx.moveTo(tx, y - 1);
      ctx.lineTo(tx, y + 3);
      ctx.stroke();
      ctx.fillStyle = muted;
      ctx.textAlign = "center";
      ctx.fillText(value.toFixed(digits), tx, y + 10);
    }
    return y - 2;
  }

  /** Where the names of the events stand: over their lines; names that would overlap are joined into one. */
  private placeNames(
    ctx: CanvasRenderingContext2D, episode: Episode | undefined, frameOf: (step: number) => number | undefined,
    x: (frame: number) => number, width: number,
  ) {
    const placed: { name: string; first: number; from: number; end: number; frames: number[] }[] = [];
    for (const { name, step } of episode?.events ?? []) {
      const frame = frameOf(step);
      if (frame === undefined) continue;
      const last = placed.at(-1);
      const wide = ctx.measureText(name).width;
      const joins = last !== undefined && x(frame) - wide / 2 < last.end + 8;
      const group = joins ? last : { name: "", first: frame, from: 0, end: 0, frames: [] as number[] };
      group.name = joins ? `${group.name} · ${name}` : name;
      group.frames.push(frame);
      const all = ctx.measureText(group.name).width;
      group.from = Math.min(Math.max(LEFT, x(group.first) - wide / 2), width - RIGHT - all);
      group.end = group.from + all;
      if (!joins) placed.push(group);
    }
    return placed;
  }

  private curves(
    ctx: CanvasRenderingContext2D, curves: Series[], x: (f: number) => number, top: number, bottom: number,
    style: { muted: string; line: string; label: (name: string, y: number) => void; right: number },
  ): void {
    const all = curves.flatMap((c) => c.values);
    let low = Math.min(...all), high = Math.max(...all);
    if (low > 0 && low < high / 2) low = 0;
    if (high - low < 1e-9 * Math.max(1, Math.abs(high))) [low, high] = [low - 1, high + 1];
    const y = (v: number) => bottom - ((v - low) / (high - low)) * (bottom - top);
    const { values: ticks, digits } = niceTicks(low, high, Math.max(2, Math.floor((bottom - top) / 22) + 1));
    for (const tick of ticks) {
      ctx.strokeStyle = style.line;
      ctx.lineWidth = 1;
      ctx.beginPath();
      ctx.moveTo(LEFT, Math.round(y(tick)) + 0.5);
      ctx.lineTo(style.right, Math.round(y(tick)) + 0.5);
      ctx.stroke();
      style.label(Math.abs(tick) < 1e-12 ? (0).toFixed(digits) : tick.toFixed(digits).replace("-", "−"), Math.min(bottom - 2, Math.max(top + 5, y(tick))));
    }
    curves.forEach((curve, i) => {
      ctx.strokeStyle = LINES[i]!;
      ctx.lineWidth = 1.75;
      ctx.lineJoin = "round";
      ctx.beginPath();
      curve.values.forEach((v, f) => (f ? ctx.lineTo(x(f), y(v)) : ctx.moveTo(x(f), y(v))));
      ctx.stroke();
    });
  }

  /** Where the concepts change their course: a triangle under each frame. */
  private changes(ctx: CanvasRenderingContext2D, frames: number[], y: number, tall: number, x: (f: number) => number, color: string): void {
    ctx.fillStyle = color;
    for (const frame of frames) {
      ctx.beginPath();
      ctx.moveTo(x(frame), y);
      ctx.lineTo(x(frame) - tall / 2, y + tall);
      ctx.lineTo(x(frame) + tall / 2, y + tall);
      ctx.fill();
    }
  }

  /** The oddity of each frame, the line above which it raises an alarm, and the first alarm. */
  private anomaly(ctx: CanvasRenderingContext2D, measured: Measured, y: number, tall: number, x: (f: number) => number, ink: string): void {
    const values = measured.anomaly!.map((v) => v ?? 0), { threshold, alarm } = measured;
    const low = Math.min(0, ...values), high = Math.max(1e-9, ...values, threshold ?? 0);
    const at = (v: number) => y + tall - ((v - low) / (high - low)) * tall;
    ctx.fillStyle = css("--muted");
    ctx.beginPath();
    ctx.moveTo(x(0), y + tall);
    values.forEach((v, f) => ctx.lineTo(x(f), at(v)));
    ctx.lineTo(x(values.length - 1), y + tall);
    ctx.globalAlpha = 0.4;
    ctx.fill();
    ctx.globalAlpha = 1;
    if (threshold !== null) {
      ctx.strokeStyle = css("--bad");
      ctx.beginPath();
      ctx.moveTo(x(0), Math.round(at(threshold)) + 0.5);
      ctx.lineTo(x(values.length - 1), Math.round(at(threshold)) + 0.5);
      ctx.stroke();
    }
    if (alarm === null) return;
    ctx.fillStyle = css("--bad");
    ctx.fillRect(x(alarm) - 1, y - 2, 2, tall + 2);
    ctx.textAlign = x(alarm) > x(values.length - 1) - 60 ? "right" : "left";
    ctx.fillStyle = ink;
    ctx.fillText("alarm", x(alarm) + (ctx.textAlign === "left" ? 5 : -5), y + tall / 2);
  }

  /** Which share of the image each group has, frame by frame; the first and the last frame have half a column. */
  private concepts(ctx: CanvasRenderingContext2D, y: number, tall: number, span: number, ratio: number): void {
    const band = this.occupancy.band(this.scene, this.items, Math.round(tall * ratio));
    if (!band) return;
    const column = span / (this.items.length - 1);
    ctx.save();
    ctx.beginPath();
    ctx.rect(LEFT, y, span, tall);
    ctx.clip();
    ctx.imageSmoothingEnabled = false;
    ctx.drawImage(band, LEFT - column / 2, y, span + column, tall);
    ctx.restore();
  }
}
