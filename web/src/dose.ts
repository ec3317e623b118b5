// The curve of dose and response: how far the answers move at each strength, beside controls whose changes are as long.
import { h } from "./dom";
import type { Dose } from "./types";

const WIDE = 300, TALL = 132, LEFT = 40, RIGHT = 20, TOP = 10, BOTTOM = 22;

const svg = (tag: string, props: Record<string, string | number>, text = ""): SVGElement => {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(props)) made.setAttribute(name, String(value));
  made.textContent = text;
  return made;
};

const UNITS: Record<string, string> = { cm: "Movement of the hand (cm)", action: "Movement of the action", "nats per token": "Change of the answer (nats)" };

/** Return the strengths at which a steering is tried besides the one that was asked for. */
export function doses(strength: number): number[] {
  const base = strength || 4;
  return [-base, -base / 2, base / 2, 1.5 * base].map((one) => Math.min(32, Math.max(-32, one)));
}

export function doseCurve(dose: Dose): HTMLElement {
  // Nothing done moves nothing.
  const points = [...dose.points, { strength: 0, shift: 0, controls: dose.points[0]!.controls.map(() => 0) }]
    .sort((a, b) => a.strength - b.strength);
  const low = points[0]!.strength, high = points.at(-1)!.strength;
  const known = points.flatMap((p) => [p.shift, ...p.controls]).filter((v) => v !== null);
  const most = Math.max(1e-9, ...known);
  const x = (v: number) => LEFT + ((WIDE - LEFT - RIGHT) * (v - low)) / (high - low);
  const y = (v: number) => TALL - BOTTOM - ((TALL - TOP - BOTTOM) * v) / most;
  const path = (values: [number, number][]) => values.map(([at, v], i) => `${i ? "L" : "M"}${x(at).toFixed(1)} ${y(v).toFixed(1)}`).join("");
  const picture = svg("svg", { viewBox: `0 0 ${WIDE} ${TALL}`, role: "img", class: "dose" });
  const digits = most >= 10 ? 0 : most >= 0.1 ? 1 : 3;
  for (const tick of [0, most / 2, most]) {
    picture.append(svg("line", { x1: LEFT, x2: WIDE - RIGHT, y1: y(tick), y2: y(tick), class: "grid" }),
      svg("text", { x: LEFT - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toFixed(digits)));
  }
  for (const { strength } of points) {
    const text = `${strength < 0 ? "−" : strength > 0 ? "+" : ""}${Math.abs(Math.round(100 * strength) / 100)}`;
    picture.append(svg("text", { x: x(strength), y: TALL - 6, "text-anchor": "middle" }, text));
  }
  const beside = points.map((p) => ({ at: p.strength, all: p.controls.filter((v) => v !== null) })).filter((p) => p.all.length);
  if (beside.length) {
    const upper = beside.map((p): [number, number] => [p.at, Math.max(...p.all)]);
    const lower = beside.map((p): [number, number] => [p.at, Math.min(...p.all)]).reverse();
    picture.append(svg("path", { d: `${path(upper)}${path(lower).replace("M", "L")}Z`, class: "band" }), svg("path", { d: path(upper), class: "most" }));
  }
  const own = points.filter((p): p is typeof p & { shift: number } => p.shift !== null).map((p): [number, number] => [p.strength, p.shift]);
  picture.append(svg("path", { d: path(own), class: "curve" }));
  for (const [at, v] of own) picture.append(svg("circle", { cx: x(at), cy: y(v), r: 3 }));
  const last = own.at(-1)!, all = beside.at(-1)?.all ?? [];
  picture.setAttribute("aria-label", `Dose and response: at strength ${last[0]} it moves ${last[1].toFixed(2)} ${dose.unit}`
    + (all.length ? `, controls of the same length at most ${Math.max(...all).toFixed(2)}.` : "."));
  const n = dose.points[0]!.controls.length;
  return h("div", { class: "doses" }, h("h3", {}, `${UNITS[dose.unit] ?? dose.unit}, by strength`), picture as unknown as HTMLElement,
    h("p", { class: "note" }, n ? `Grey: from the least to the most of ${n} random directions whose changes are as long.` : "No controls were asked for."));
}
