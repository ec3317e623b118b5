// The bar at the top: what is shown, and how.
import type { Data } from "./data";
import { $, h } from "./dom";
import type { Store, Theme, View } from "./store";

const METHOD_NAMES: Record<string, string> = { tsne: "t-SNE", umap: "UMAP", mspace: "M-space", pca: "PCA" };

export class Controls {
  private layer = h("input", { type: "range", min: 0, step: 1, "aria-label": "Layer" });
  private layerName = h("output", {});
  private colors = h("select", { "aria-label": "Colours" });
  private k = h("input", { type: "range", min: 0, step: 1, "aria-label": "K: number of groups", "aria-keyshortcuts": "k" });
  private kName = h("output", {});
  private eig = h("input", { type: "range", min: 2, step: 1, "aria-label": "Number of eigenvectors" });
  private eigName = h("output", {});
  private mix = h("input", { type: "range", min: 0, max: 100, step: 5, "aria-label": "Opacity of the colours over the image" });
  private method = h("select", { "aria-label": "What similarity compares" },
    h("option", { value: "concepts" }, "concepts"), h("option", { value: "features" }, "features"));
  private smooth = h("input", { type: "checkbox" });
  private edit = h("button", { type: "button", class: "plain", "aria-keyshortcuts": "d", "aria-pressed": "false" }, "Edit the model");
  private theme = h("button", { type: "button", class: "plain", "aria-keyshortcuts": "t" });

  constructor(private data: Data, private store: Store, actions: { copy(): void; help(): void; edit(): void }) {
    const run = data.runs[0]!;
    this.layer.max = String(run.sites.length - 1);
    const groups = h("option", { value: "groups" }, "groups");
    this.k.max = String(run.ks.length - 1);
    this.k.disabled = run.ks.length < 2;
    const palettes = h("optgroup", { label: "Continuous" },
      ...data.state.methods.map((m) => h("option", { value: m }, METHOD_NAMES[m] ?? m)));
    this.colors.append(palettes, groups);
    this.eig.max = String(run.n_eig);
    const field = (name: string, ...rest: HTMLElement[]) => h("label", { class: "field" }, h("span", {}, name), ...rest);
    $("controls").append(
      field("Layer", this.layer, this.layerName),
      field("Colours", this.colors),
      field("K", this.k, this.kName),
      field("Eigenvectors", this.eig, this.eigName),
      field("Compare by", this.method),
      field("Opacity", this.mix),
      h("label", { class: "field check" }, this.smooth, h("span", {}, "Smooth")),
    );
    this.edit.addEventListener("click", actions.edit);
    $("actions").append(
      this.edit,
      this.theme,
      h("button", { type: "button", class: "plain", "aria-keyshortcuts": "l", click: actions.copy }, "Copy link"),
      h("button", { type: "button", class: "plain", "aria-keyshortcuts": "?", click: actions.help }, "Keys"),
    );
    this.layer.addEventListener("input", () => this.chooseLayer(Number(this.layer.value)));
    this.colors.addEventListener("change", () => this.chooseColors(this.colors.value));
    this.k.addEventListener("input", () => store.set({ color: "groups", k: run.ks[Number(this.k.value)]!, pin: -1 }));
    let later = 0;
    this.eig.addEventListener("input", () => {
      this.eigName.textContent = this.eig.value;
      clearTimeout(later); // a palette is fitted anew: only for where the slider comes to rest
      later = window.setTimeout(() => store.set({ eig: Number(this.eig.value) }), 120);
    });
    this.mix.addEventListener("input", () => store.set({ mix: Number(this.mix.value) }));
    this.method.addEventListener("change", () => store.set({ method: this.method.value as View["method"] }));
    this.smooth.addEventListener("change", () => store.set({ smooth: this.smooth.checked }));
    this.theme.addEventListener("click", () => this.nextTheme());
  }

  /** Show another layer: of both runs, as far as the second has one of that name. */
  chooseLayer(number: number): void {
    const sites = this.data.runs[0]!.sites;
    const site = sites[Math.min(sites.length - 1, Math.max(0, number))]!.name;
    const second = this.data.runs[1];
    const site2 = !second ? "" : second.sites.some((s) => s.name === site) ? site : this.store.view.site2;
    this.store.set({ site, site2 });
  }

  stepLayer(by: number): void {
    this.chooseLayer(this.data.runs[0]!.sites.findIndex((s) => s.name === this.store.view.site) + by);
  }

  chooseColors(value: string): void {
    if (value === "groups") this.store.set({ color: "groups" });
    else this.store.set({ color: "palette", palette: value });
  }

  stepK(by: number): void {
    const ks = this.data.runs[0]!.ks, { k, color } = this.store.view;
    const at = color === "groups" ? ks.indexOf(k) + by : ks.indexOf(k);
    this.store.set({ color: "groups", k: ks[(at + ks.length) % ks.length]!, pin: -1 });
  }

  nextPalette(): void {
    const { methods } = this.data.state, { palette, color } = this.store.view;
    const by = color === "palette" ? 1 : 0;
    this.store.set({ color: "palette", palette: methods[(methods.indexOf(palette) + by) % methods.length]! });
  }

  stepEig(by: number): void {
    this.store.set({ eig: Math.min(this.data.runs[0]!.n_eig, Math.max(2, this.store.view.eig + by)) });
  }

  nextTheme(): void {
    const order: Theme[] = ["auto", "light", "dark"];
    this.store.set({ theme: order[(order.indexOf(this.store.view.theme) + 1) % 3]! });
  }

  draw(view: View): void {
    const number = this.data.runs[0]!.sites.findIndex((s) => s.name === view.site);
    this.layer.value = String(number);
    this.layer.setAttribute("aria-valuetext", view.site);
    this.layerName.textContent = view.site;
    this.colors.value = view.color === "groups" ? "groups" : view.palette;
    this.k.value = String(this.data.runs[0]!.ks.indexOf(view.k));
    this.k.setAttribute("aria-valuetext", `${view.k} groups`);
    this.kName.textContent = String(view.k);
    this.eig.value = String(view.eig);
    this.eigName.textContent = String(view.eig);
    this.mix.value = String(view.mix);
    this.method.value = view.method;
    this.smooth.checked = view.smooth;
    this.edit.setAttribute("aria-pressed", String(view.panel === "edit"));
    this.theme.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[view.theme];
    this.theme.setAttribute("aria-label", `Light or dark: ${view.theme}`);
    if (view.theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = view.theme;
  }
}
