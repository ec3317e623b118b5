// What has been fetched. Each getter returns what is there and asks for what is not; when an answer arrives, the page
// draws again.
import * as api from "./api";
import type { AppState, Episode, First, Items, Layout, Measured, RunInfo, Site, Template } from "./types";

type Loaded<T> = { value?: T; promise: Promise<T>; failed?: string };

export class Data {
  readonly state: AppState;
  readonly items: Items[];
  private cache = new Map<string, Loaded<unknown>>();
  private images = new Map<string, HTMLImageElement>();
  /** Colours shown last at a site: they stay until newly asked ones arrive. */
  private shown = new Map<string, Uint8Array>();
  /** Colours of the groups, per `run|k`: known once labels of that k have arrived. */
  private groups = new Map<string, string[]>();
  waiting = 0;
  /** Set once the first picture is on the page: what the server needs more time for is asked for only then. */
  isShown = false;

  constructor(
    { header: first, arrays }: { header: First; arrays: Uint8Array[] },
    private arrived: () => void,
    private failed: (message: string) => void,
  ) {
    this.state = first.state;
    this.items = first.items;
    const keep = <T>(key: string, value: T) => this.cache.set(key, { value, promise: Promise.resolve(value) });
    for (const { run, name, value } of first.layouts) keep(`layout|${run}|${name}`, value);
    for (const { run, number, value } of first.episodes) keep(`episode|${run}|${number}`, value);
    first.colors.forEach(({ run, site, method, n_eig }, i) => keep(`colors|${run}|${site}|${method}|${n_eig}`, arrays[i]!));
    first.images.forEach(({ run, item, camera, type }, i) => {
      const data = arrays[first.colors.length + i]! as Uint8Array<ArrayBuffer>;
      this.show(api.imageUrl(this.runs[run]!, item, camera), URL.createObjectURL(new Blob([data], { type })));
    });
  }

  get runs(): RunInfo[] {
    return this.state.runs;
  }

  site(run: number, name: string): Site | undefined {
    return this.runs[run]!.sites.find((s) => s.name === name);
  }

  /** The layer whose words are shown: the given one, or where that has none the last that has; "" without any. */
  wordSite(run: number, name: string): string {
    if (this.site(run, name)?.words) return name;
    return this.runs[run]!.sites.filter((s) => s.words).at(-1)?.name ?? "";
  }

  /** What an item is called: "frame 3 of 8 of episode 1", or the image's id. */
  itemName(item: number): string {
    const { items } = this.items[0]!, { episode, id } = items[item]!;
    if (episode === null) return id;
    const frames = items.map((_, i) => i).filter((i) => items[i]!.episode === episode)
      .sort((a, b) => (items[a]!.step ?? a) - (items[b]!.step ?? b));
    return `frame ${frames.indexOf(item) + 1} of ${frames.length} of episode ${episode}`;
  }

  /** Item of run `run` that shows the same as an item of the first run; -1 where there is none. */
  itemIn(run: number, item: number): number {
    return run === 0 ? item : (this.state.shared_items ?? []).indexOf(item);
  }

  private get<T>(key: string, load: () => Promise<T>): T | undefined {
    return this.entry(key, load).value as T | undefined;
  }

  private entry<T>(key: string, load: () => Promise<T>): Loaded<T> {
    let entry = this.cache.get(key) as Loaded<T> | undefined;
    if (!entry) {
      this.waiting++;
      const made: Loaded<T> = { promise: load() };
      made.promise
        .then((value) => {
          made.value = value;
        })
        .catch((error: Error) => {
          made.failed = error.message;
          this.failed(error.message);
        })
        .finally(() => {
          this.waiting--;
          this.arrived();
        });
      this.cache.set(key, made as Loaded<unknown>);
      entry = made;
    }
    return entry;
  }

  layout(run: number, name: string): Layout | undefined {
    return this.get(`layout|${run}|${name}`, () => api.getLayout(this.runs[run]!, name));
  }

  /** Return the template of an item at a site and the number of its first token. */
  place(run: number, site: string, item: number): { start: number; template: Template } | undefined {
    const known = this.site(run, site);
    const layout = known && this.layout(run, known.layout);
    const number = layout?.template[item] ?? -1;
    if (!layout || number < 0) return undefined;
    return { start: layout.starts[item]!, template: layout.templates[number]! };
  }

  colors(run: number, site: string, method: string, nEig: number): Uint8Array | undefined {
    const found = this.get(`colors|${run}|${site}|${method}|${nEig}`, () =>
      api.getColors(this.runs[run]!, site, method, nEig),
    );
    if (found) this.shown.set(`${run}|${site}`, found);
    return found ?? this.shown.get(`${run}|${site}`);
  }

  labels(run: number, site: string, k: number): Uint8Array | Uint16Array | undefined {
    const found = this.get(`labels|${run}|${site}|${k}`, () => api.getLabels(this.runs[run]!, site, k));
    if (found) this.groups.set(`${run}|${k}`, found.colors);
    return found?.of;
  }

  /** Return the colours of the k groups of a run; empty until labels of that k have arrived (see `labels`). */
  groupColors(run: number, k: number): string[] {
    return this.groups.get(`${run}|${k}`) ?? [];
  }

  wordColors(run: number, site: string): Uint8Array | null | undefined {
    if (!this.isShown) return undefined;
    return this.get(`words|${run}|${site}`, () => api.getWordColors(this.runs[run]!, site));
  }

  episode(run: number, number: number): Episode | undefined {
    return this.get(`episode|${run}|${number}`, () => api.getEpisode(this.runs[run]!, number));
  }

  measured(run: number, number: number): Measured | undefined {
    if (!this.isShown) return undefined;
    return this.get(`measured|${run}|${number}`, () => api.getMeasured(this.runs[run]!, number));
  }

  /** Return an image once it is decoded; the last few hundred are kept. */
  image(run: number, item: number, camera: number): HTMLImageElement | undefined {
    const url = api.imageUrl(this.runs[run]!, item, camera);
    const image = this.images.get(url) ?? this.show(url);
    return image.complete && image.naturalWidth > 0 ? image : undefined;
  }

  /** Let an image show what is at an address of the server: fetched from there, or held already as `own`. */
  private show(url: string, own?: string): HTMLImageElement {
    const image = new Image();
    image.onload = this.arrived;
    image.onerror = () => this.failed("an image could not be read");
    if (own) image.src = own;
    else api.showImage(image, url);
    this.images.set(url, image);
    if (this.images.size > 400) this.images.delete(this.images.keys().next().value!);
    return image;
  }
}
