// The page of `vlascope app`: fetches the runs, keeps the view in one store, draws it after every change.
//
// The panels are independent of one another: each has draw(scene) and tells the store what was chosen. Another panel
// (one that edits the model, say) is one more file with a draw(scene), created and called here.
import * as api from "./api";
import { Controls } from "./controls";
import { Data } from "./data";
import { $, h } from "./dom";
import { EditPanel } from "./editpanel";
import { Edits } from "./edits";
import { ItemsView } from "./items";
import { Likeness } from "./likeness";
import type { Hover, Scene } from "./paint";
import { Stage } from "./stage";
import { fromHash, NO_EDIT, Store, type View } from "./store";
import { Strip } from "./strip";
import { Timeline } from "./timeline";
import { WordsView } from "./words";

declare global {
  interface Window {
    /** Set where the page stands in a notebook. */
    vlascopeNotebook?: boolean;
    /** What benchmarks/app.py and the browser tests read: milliseconds since the page was opened, and of the last draw. */
    vlascope?: { firstPicture: number; draws: number; lastDraw: number; drawnAt: number; clickMs: number; serverMs: number; allMs: number; waiting: number; readonly isSaved: boolean };
  }
}

const MAX_CLICKS = 64;
const SAID_MS = 2000; // so long the line at the bottom says that something was done

function fail(message: string): void {
  const box = $("error");
  box.textContent = message;
  box.hidden = false;
  clearTimeout(Number(box.dataset.timer));
  box.dataset.timer = String(window.setTimeout(() => (box.hidden = true), 8000));
}

function startView(data: Data, hash: string): View {
  const run = data.runs[0]!, second = data.runs[1];
  const given = fromHash(hash);
  const has = (r: typeof run, site?: string) => !!site && r.sites.some((s) => s.name === site);
  const site = has(run, given.site) ? given.site! : run.default_site;
  const twin = !second ? "" : has(second, site) ? site : second.default_site;
  const isFine = (ref: { run: number; site: string; token: number }) => {
    const info = data.runs[ref.run];
    return !!info && ref.token < (info.sites.find((s) => s.name === ref.site)?.n ?? 0);
  };
  const first = data.state.shared_items?.find((i) => i >= 0) ?? 0;
  return {
    item: given.item !== undefined && given.item < run.n_items ? given.item : first,
    site,
    site2: second && has(second, given.site2) ? given.site2! : twin,
    color: given.color ?? "palette",
    k: given.k !== undefined && run.ks.includes(given.k) ? given.k : run.ks[Math.floor(run.ks.length / 2)]!,
    palette: given.palette && data.state.methods.includes(given.palette) ? given.palette : run.method,
    eig: Math.min(run.n_eig, Math.max(2, given.eig ?? run.n_eig)),
    method: given.method ?? "concepts",
    mix: given.mix ?? 85,
    smooth: given.smooth ?? false,
    theme: given.theme ?? "auto",
    camera: given.camera ?? 0,
    pin: given.pin ?? -1,
    query: given.query && isFine(given.query) ? given.query : null,
    clicks: (given.clicks ?? []).filter(isFine),
    panel: given.panel ?? "layers",
    edit: given.edit ?? NO_EDIT,
  };
}

async function start(): Promise<void> {
  if (window.vlascopeNotebook) await api.connect();
  const first = await api.getFirst();
  let group = -1, lit = -1; // the group that is lit, and the one under the pointer
  let pointed: Hover | null = null; // where the pointer is; `hovered` is what the view shows there
  let hovered: Hover | null = null;
  let store: Store | undefined;
  const redraw = () => store?.touch();
  const data = new Data(first, redraw, fail);
  const { state } = data;
  const like = new Likeness(data, () => view.draw(), redraw, fail);
  const edits = new Edits(data, redraw);
  store = new Store(startView(data, location.hash));
  const view = store;

  const title = state.runs.map((run) => `${run.model} · ${run.name}`).join("  vs  ");
  $("run").textContent = title;
  document.title = `${state.runs.map((r) => r.name).join(" vs ")} · vlascope`;

  const groupAt = (hover: Hover | null): number => {
    if (!hover || view.view.color !== "groups" || like.kind !== "none") return -1;
    const labels = data.labels(hover.run, hover.ref.site, view.view.k);
    return labels ? labels[hover.ref.token]! : -1;
  };
  const setGroup = (next: number) => {
    lit = next;
    const { color, pin, k } = view.view;
    const now = lit < 0 && color === "groups" && pin < k ? pin : lit;
    if (now === group) return;
    group = now;
    redraw();
  };
  const onHover = (hover: Hover | null) => {
    pointed = hovered = hover;
    if (hover?.at) view.set({ camera: hover.at.camera });
    stage.point(hover);
    strip.point(hover);
    inspect();
    setGroup(groupAt(hover));
  };
  /** The server is asked at once, not with the next frame, and what it says is mostly there before an eye sees it. */
  const ask = (patch: Partial<View>) => {
    view.set(patch, 100);
    like.update(view.view);
  };
  const onPick = (hover: Hover, event: { shiftKey: boolean; altKey: boolean }) => {
    const { query, clicks } = view.view;
    if (!event.shiftKey && !event.altKey) return ask({ query: hover.ref, clicks: [] });
    // The first added click keeps the one that was there as a positive one.
    let next = clicks.length ? clicks : query ? [{ ...query, positive: true }] : [];
    const same = (c: { run: number; site: string; token: number }) =>
      c.run === hover.ref.run && c.site === hover.ref.site && c.token === hover.ref.token;
    next = [...next.filter((c) => !same(c)), { ...hover.ref, positive: !event.altKey }];
    if (next.length > MAX_CLICKS) return fail(`a mask has at most ${MAX_CLICKS} clicks`);
    if (!next.some((c) => c.positive)) return fail("click first what shall be in the mask, then what shall be out");
    ask({ query: null, clicks: next });
  };
  const inspect = () => {
    const parts: string[] = [];
    if (hovered) {
      const { run, ref } = hovered;
      parts.push(data.runs.length > 1 ? `${data.runs[run]!.name}: ${hovered.where}` : hovered.where);
      for (const k of view.view.color === "groups" ? [view.view.k] : data.runs[run]!.ks.slice(-1)) {
        const labels = data.labels(run, ref.site, k);
        if (labels) parts.push(`concept ${labels[ref.token]! + 1} of ${k}`);
      }
      const values = like.values.get(`${run}|${ref.site}`);
      if (values && like.kind === "similar") parts.push(`similarity ${(values[ref.token]! / 255).toFixed(2)}`);
      if (values && like.kind === "mask") parts.push(values[ref.token]! > 128 ? "in the mask" : "not in the mask");
    }
    const rest = "Click: similar everywhere · Shift+click: add to a mask · Alt+click: take away";
    $("inspect").textContent = parts.length ? parts.join(" · ") : rest;
  };

  const controls = new Controls(data, view, {
    copy: () => void copyLink(),
    help: () => $<HTMLDialogElement>("help").showModal(),
    edit: () => togglePanel(),
  });
  const renew = (hover: Hover): Hover | null => (hover.at ? stage.renew(hover) : words.shows(hover) ? hover : null);
  const togglePanel = () => view.set({ panel: view.view.panel === "edit" ? "layers" : "edit" });
  const stage = new Stage($("stage"), { hover: onHover, pick: onPick });
  const strip = new Strip($("layers"), (run, site) =>
    view.set(run === 0 ? { site, site2: data.runs[1]?.sites.some((s) => s.name === site) ? site : view.view.site2 } : { site2: site }));
  const items = new ItemsView($("items"), data, (item) => view.set({ item }), fail);
  const panel = new EditPanel($("edits"), edits, view);
  const words = new WordsView($("words"), { hover: onHover, pick: onPick });
  const timeline = new Timeline($("time"), (item) => view.set({ item }));

  const legend = () => {
    const { color, k, pin } = view.view;
    const box = $("legend");
    const wanted = data.groupColors(0, k);
    const key = `${color}|${k}|${group}|${pin}|${wanted.length}`;
    if (box.dataset.key === key) return;
    box.dataset.key = key;
    box.hidden = color !== "groups";
    if (color !== "groups") return;
    if (box.childElementCount !== wanted.length || box.dataset.k !== String(k)) {
      box.dataset.k = String(k);
      box.replaceChildren(...wanted.map((hex, i) => {
        const swatch = h("button", { type: "button", class: "swatch", "aria-label": `concept ${i + 1} of ${k}`,
          "aria-pressed": "false", click: () => view.set({ pin: view.view.pin === i ? -1 : i }), title: "Click: keep it lit",
          pointerenter: () => setGroup(i), pointerleave: () => setGroup(-1), focus: () => setGroup(i), blur: () => setGroup(-1) });
        swatch.style.background = hex;
        return swatch;
      }));
    }
    [...box.children].forEach((child, i) => {
      child.classList.toggle("on", i === group);
      child.setAttribute("aria-pressed", String(i === pin));
    });
  };

  const stats = (window.vlascope = {
    firstPicture: 0, draws: 0, lastDraw: 0, drawnAt: 0, clickMs: 0, serverMs: 0, allMs: 0, waiting: 0,
    get isSaved() {
      return view.isSaved;
    },
  });
  let prefetched = -1, said = "";
  const frame = (now: View, changed: Set<keyof View>) => {
    const started = performance.now();
    setGroup(lit);
    const scene: Scene = { data, like, edits, view: now, group };
    like.update(now);
    controls.draw(now);
    items.draw(now.item);
    const isWhole = stage.draw(scene);
    $("layers").hidden = now.panel === "edit";
    strip.draw(scene);
    if (changed.has("site") || changed.has("site2") || changed.has("panel")) strip.reveal();
    panel.draw(scene);
    words.draw(scene);
    const unit = items.units[items.unitAt(now.item)]!;
    timeline.draw(scene, unit.items);
    $("answer").textContent = answer(data, now.item);
    if (pointed) {
      hovered = renew(pointed);
      stage.point(hovered);
      strip.point(hovered);
      if ((["item", "site", "site2", "k", "color"] as const).some((key) => changed.has(key))) setGroup(groupAt(hovered));
    }
    inspect();
    legend();
    const waits = data.waiting ? "Fetching colours … " : "", drawn = footer(data, now);
    $("status").textContent = said || waits + (like.message || drawn);
    $("status").title = drawn; // on a narrow screen its end is cut off
    $("clear").hidden = like.kind === "none" && !now.query && !now.clicks.length && group < 0;
    for (const one of state.runs) {
      if (one.n_failed) $("status").append(` · ${one.n_failed} items could not be read`);
    }
    if (isWhole && !stats.firstPicture) {
      stats.firstPicture = performance.now();
      data.isShown = true;
      strip.reveal();
      view.touch();
    }
    Object.assign(stats, { draws: stats.draws + 1, lastDraw: performance.now() - started, drawnAt: performance.now(),
      clickMs: like.clickMs, serverMs: like.serverMs, allMs: like.allMs, waiting: data.waiting });
    if (prefetched !== now.item && isWhole) {
      prefetched = now.item;
      const at = unit.items.indexOf(now.item);
      for (const near of [at + 1, at + 2, at - 1]) {
        const item = unit.items[near];
        if (item !== undefined) data.items[0]!.items[item]!.cameras.forEach((_, camera) => data.image(0, item, camera));
      }
    }
  };
  view.subscribe(frame);
  view.touch();

  const clear = () => view.set({ query: null, clicks: [], pin: -1 });
  $("clear").addEventListener("click", clear);
  async function copyLink(): Promise<void> {
    view.write();
    try {
      await navigator.clipboard.writeText(location.href);
      said = "Link copied: it opens this very view.";
      redraw();
      setTimeout(() => {
        said = "";
        redraw();
      }, SAID_MS);
    } catch {
      fail("the browser does not let this page copy; the address bar has the same link");
    }
  }

  addEventListener("hashchange", () => view.set(startView(data, location.hash)));
  const frameBy = (by: number) => {
    const now = items.units[items.unitAt(view.view.item)]!.items;
    const at = now.indexOf(view.view.item);
    if (now.length > 1) view.set({ item: now[Math.min(now.length - 1, Math.max(0, at + by))]! });
    else unitBy(Math.sign(by));
  };
  const unitBy = (by: number) => {
    const next = items.units[items.unitAt(view.view.item) + by];
    if (next) view.set({ item: next.items[0]! });
  };
  const keys: Record<string, () => void> = {
    ArrowLeft: () => frameBy(-1), ArrowRight: () => frameBy(1), Home: () => frameBy(-1e9), End: () => frameBy(1e9),
    PageUp: () => frameBy(-10), PageDown: () => frameBy(10),
    ArrowUp: () => controls.stepLayer(-1), ArrowDown: () => controls.stepLayer(1),
    "[": () => unitBy(-1), "]": () => unitBy(1), k: () => controls.stepK(1), K: () => controls.stepK(-1),
    p: () => controls.nextPalette(), e: () => controls.stepEig(-1), E: () => controls.stepEig(1),
    m: () => view.set({ method: view.view.method === "concepts" ? "features" : "concepts" }),
    o: () => view.set({ mix: view.view.mix > 0 ? 0 : 85 }), s: () => view.set({ smooth: !view.view.smooth }),
    d: togglePanel, " ": () => timeline.toggle(), t: () => controls.nextTheme(), l: () => void copyLink(), Escape: clear,
    "?": () => $<HTMLDialogElement>("help").showModal(),
    "1": () => void items.review("success"), "2": () => void items.review("failure"), "3": () => void items.review("drop"),
  };
  addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    const isField = target.matches("input, select, textarea, dialog *");
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (isField && event.key !== "Escape") return;
    if (target.matches("button, summary") && (event.key === " " || event.key === "Enter")) return;
    if ($<HTMLDialogElement>("help").open) return;
    const action = keys[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
  $("help").addEventListener("click", (event) => {
    if (event.target === $("help")) $<HTMLDialogElement>("help").close();
  });
  $("close-help").addEventListener("click", () => $<HTMLDialogElement>("help").close());
}

/** How the picture was made: the line of the cut, with the layer and the colours that are shown. */
function footer(data: Data, view: View): string {
  const run = data.runs[0]!;
  const sites = view.site2 && view.site2 !== view.site ? `${view.site} and ${view.site2}` : view.site;
  const colors = view.color === "groups" ? `${view.k} groups`
    : `${view.palette}${view.eig < run.n_eig ? ` of ${view.eig} eigenvectors` : ""}`;
  const parts = run.footer.split("  ·  ").map((part) => (part.startsWith("colours ") ? `colours ${colors}` : part));
  parts[1] = sites;
  return parts.join("  ·  ");
}

function answer(data: Data, item: number): string {
  const info = data.items[0]!.items[item]!;
  const prompt = data.items[0]!.prompts[info.prompt];
  return [prompt ? `“${prompt}”` : "", info.answer ? `answer: ${info.answer}` : ""].filter(Boolean).join("   →   ");
}

start().catch((error: Error) => fail(`${error.message}. Is the server still running? Reload the page.`));
