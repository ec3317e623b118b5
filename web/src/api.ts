// Asking the server. Binary answers are a uint32 length, a JSON header of that length, then the bytes of each array.
import type {
  Click, EditChoices, EditFacts, Episode, First, JobState, Layout, Measured, Ref, Reviews, RunInfo, SimilarHeader, Verdict,
} from "./types";

export class Refused extends Error {}

/** In a notebook the page has no server of its own: it asks the kernel, through the frame around it. */
let kernel: MessagePort | null = null;
const asked = new Map<string, (answer: Response) => void>();

export function connect(): Promise<void> {
  return new Promise((done) => {
    addEventListener("message", (event) => {
      if (event.data !== "vlascope" || !event.ports[0]) return;
      kernel = event.ports[0];
      kernel.onmessage = ({ data }: MessageEvent<{ id: string; status: number; type: string; body: ArrayBuffer }>) => {
        asked.get(data.id)?.(new Response(data.body, { status: data.status, headers: { "content-type": data.type } }));
        asked.delete(data.id);
      };
      done();
    });
    parent.postMessage("vlascope-ready", "*");
  });
}

function askKernel(url: string, init?: RequestInit): Promise<Response> {
  return new Promise((done, refuse) => {
    const id = `${performance.timeOrigin}-${Math.random()}`;
    asked.set(id, done);
    init?.signal?.addEventListener("abort", () => {
      asked.delete(id);
      refuse(new DOMException("no longer wanted", "AbortError"));
    });
    kernel!.postMessage({ id, url, method: init?.method ?? "GET", body: init?.body ?? "" });
  });
}

async function ask(url: string, init?: RequestInit): Promise<Response> {
  const answer = kernel ? await askKernel(url, init) : await fetch(url, { credentials: "same-origin", ...init });
  if (answer.ok) return answer;
  const text = await answer.text();
  let message = `the server answered ${answer.status}`;
  try {
    const body = JSON.parse(text);
    if (typeof body.error === "string") message = body.error;
  } catch {
    // Not ours: the status says enough.
  }
  throw new Refused(message);
}

async function json<T>(url: string, init?: RequestInit): Promise<T> {
  return (await ask(url, init)).json() as Promise<T>;
}

async function binary<H>(url: string, init?: RequestInit): Promise<{ header: H; arrays: Uint8Array[] }> {
  const buffer = await (await ask(url, init)).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length))) as H & { sizes: number[] };
  const arrays: Uint8Array[] = [];
  let at = 4 + length;
  for (const size of header.sizes) {
    arrays.push(new Uint8Array(buffer, at, size));
    at += size;
  }
  return { header, arrays };
}

const query = (values: Record<string, string | number>): string =>
  new URLSearchParams(Object.entries(values).map(([k, v]) => [k, String(v)])).toString();

const post = (body: unknown): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

export const getFirst = () => binary<First>("/api/first");
export const getEpisode = (run: RunInfo, number: number) => json<Episode>(`/api/runs/${run.key}/episodes/${number}`);
export const getMeasured = (run: RunInfo, number: number) =>
  json<Measured>(`/api/runs/${run.key}/episodes/${number}/measured`);
export const getLayout = (run: RunInfo, name: string) => json<Layout>(`/api/runs/${run.key}/layout?${query({ name })}`);
export const imageUrl = (run: RunInfo, item: number, camera: number) => `/api/runs/${run.key}/images/${item}/${camera}`;

/** Let an element show an image of a run. */
export function showImage(image: HTMLImageElement, url: string): void {
  if (!kernel) {
    image.src = url;
    return;
  }
  ask(url).then((answer) => answer.blob()).then(
    (data) => {
      image.src = URL.createObjectURL(data);
    },
    () => image.dispatchEvent(new Event("error")),
  );
}

export const getReviews = () => json<Reviews>("/api/reviews");
export const addReview = (id: string, review: Verdict, reason: string) =>
  json<Reviews>("/api/reviews", post({ id, review, reason }));

export async function getColors(run: RunInfo, site: string, method: string, nEig: number): Promise<Uint8Array> {
  return (await binary(`/api/runs/${run.key}/colors?${query({ site, method, n_eig: nEig })}`)).arrays[0]!;
}

export type Labels = { of: Uint8Array | Uint16Array; colors: string[] };

/** Return the cluster of every token of a site, and the clusters' colours. */
export async function getLabels(run: RunInfo, site: string, k: number): Promise<Labels> {
  const { header, arrays } = await binary<{ bytes: number; colors: string[] }>(
    `/api/runs/${run.key}/labels?${query({ site, k })}`,
  );
  const bytes = arrays[0]!;
  const of = header.bytes === 1 ? bytes : new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2);
  return { of, colors: header.colors };
}

export async function getWordColors(run: RunInfo, site: string): Promise<Uint8Array | null> {
  return (await binary(`/api/runs/${run.key}/words?${query({ site })}`)).arrays[0] ?? null;
}

export const getSimilar = (
  run: RunInfo, ref: Ref, method: string, nEig: number, sites: string, signal: AbortSignal,
) =>
  binary<SimilarHeader>(
    `/api/similar?${query({ run: run.key, site: ref.site, token: ref.token, method, n_eig: nEig, sites })}`,
    { signal },
  );

export const getMask = (runs: RunInfo[], clicks: Click[], nEig: number, sites: string, signal: AbortSignal) =>
  binary<SimilarHeader>("/api/mask", {
    ...post({
      clicks: clicks.map((c) => ({ run: runs[c.run]!.key, site: c.site, token: c.token, positive: c.positive })),
      n_eig: nEig,
      sites,
    }),
    signal,
  });

export const getEditChoices = (run: RunInfo) => json<EditChoices>(`/api/runs/${run.key}/edits`);
export const startEdit = (ask: unknown) => json<JobState>("/api/edits", post(ask));
export const getEdit = (job: number) => json<JobState>(`/api/edits/${job}`);
export const stopEdit = (job: number) => json<JobState>(`/api/edits/${job}/stop`, post({}));

export async function getEditResult(job: number): Promise<{ facts: EditFacts; nearest: Map<string, Int32Array> }> {
  const { header, arrays } = await binary<{ facts: EditFacts; sites: string[] }>(`/api/edits/${job}/result`);
  const nearest = new Map<string, Int32Array>();
  header.sites.forEach((site, i) => {
    const bytes = arrays[i]!;
    nearest.set(site, new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4));
  });
  return { facts: header.facts, nearest };
}
