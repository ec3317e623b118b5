// What the server says; the shapes of its answers (see src/vlascope/app/server.py).

export interface Site {
  name: string;
  layout: string;
  n: number;
  width: number;
  patches: boolean;
  words: boolean;
}

export interface RunInfo {
  key: string;
  name: string;
  model: string;
  n_items: number;
  n_tokens: number;
  sites: Site[];
  default_site: string;
  ks: number[];
  n_eig: number;
  eigenvalues: number[];
  method: string;
  sampled_share: number | null;
  notes: string[];
  n_failed: number;
  footer: string;
}

export interface AppState {
  version: string;
  runs: RunInfo[];
  compared: boolean;
  shared_items: number[] | null;
  methods: string[];
}

/** All that the first picture needs, in one message; the arrays are those of `colors`, then of `images`. */
export interface First {
  state: AppState;
  items: Items[];
  layouts: { run: number; name: string; value: Layout }[];
  episodes: { run: number; number: number; value: Episode }[];
  colors: { run: number; site: string; method: string; n_eig: number }[];
  images: { run: number; item: number; camera: number; type: string }[];
}

export interface Item {
  id: string;
  unit: string;
  episode: number | null;
  step: number | null;
  time: number | null;
  prompt: number;
  cameras: string[];
  sizes: [number, number][];
  answer: string | null;
  outcome: string | null;
  success: boolean | null;
  /** What else is known, such as "class: cat"; of an episode on its first item only. */
  labels?: string[];
}

export interface Items {
  prompts: (string | null)[];
  items: Item[];
}

export interface Grid {
  camera: number;
  tile: number;
  rows: number;
  cols: number;
  frame: [number, number, number, number];
  index: number[];
}

export interface Word {
  token: number;
  text: string;
  kind: string;
}

export interface Template {
  n: number;
  grids: Grid[];
  words: Word[];
}

export interface Layout {
  layout: string;
  n: number;
  starts: number[];
  template: number[];
  templates: Template[];
}

export interface Series {
  name: string;
  values: number[];
}

export interface Episode {
  episode: number;
  items: number[];
  steps: number[];
  times: (number | null)[];
  prompt: string | null;
  source: string;
  actions: Series[];
  closed: boolean[] | null;
  states: Series[];
  events: { name: string; step: number }[];
}

/** What saved measures say about the frames of an episode; null where nobody measured. */
export interface Measured {
  episode: number;
  changes: number[] | null;
  changes_site: string;
  anomaly: (number | null)[] | null;
  anomaly_site: string;
  threshold: number | null;
  alarm: number | null;
}

export interface PartName {
  run: string;
  site: string;
}

export interface SimilarHeader {
  ms: number;
  method: string;
  exact: boolean;
  rank: number | null;
  parts: PartName[];
  pending?: PartName[];
  missing?: PartName[];
  n_in?: number;
}

export type Verdict = "success" | "failure" | "drop";

export interface Reviews {
  table: string;
  reviews: Record<string, { review: Verdict; reason: string }>;
}

/** A token: number of the run on the page (0 or 1), site, and its number within the site. */
export interface Ref {
  run: number;
  site: string;
  token: number;
}

export interface Click extends Ref {
  positive: boolean;
}

export type EditKind = "tokens" | "group" | "words" | "latent" | "attention" | "module";

/** What the panel of edits asks for; part of the view, so that a link holds it. */
export interface EditForm {
  kind: EditKind;
  where: string;
  strength: number;
  /** Whether other strengths are tried as well, for the curve of dose and response. */
  curve: boolean;
  frames: number;
  scope: "episode" | "run";
  group: number;
  from: string;
  to: string;
  dictionary: string;
  latent: number;
  source: string;
  reader: string;
  blocks: string;
  module: string;
  mean: boolean;
}

export interface EditChoices {
  kinds: string[];
  words: string[];
  modules: string[];
  dictionaries: string[];
  answers: boolean;
}

export interface JobState {
  job: number;
  state: "running" | "done" | "failed" | "cancelled";
  text: string;
  done: number;
  total: number;
  secs: number;
  left_secs: number | null;
}

/** A degree of freedom: before and after on the shown frame, mean move over all frames, and the controls' largest. */
export interface EditRow {
  name: string;
  unit: string;
  before: number | null;
  after: number | null;
  move: number | null;
  interval: [number, number] | null;
  control: number | null;
}

/** How far the answers move at each strength, beside controls whose changes are as long. */
export interface Dose {
  unit: string;
  points: { strength: number; shift: number | null; controls: (number | null)[] }[];
}

export interface EditFacts {
  name: string;
  item: number;
  n_items: number;
  as_captured: boolean | null;
  rows: EditRow[];
  words: { before: string; after: string } | null;
  changed: number | null;
  kl: number | null;
  control_kl: (number | null)[];
  verdict: string;
  dose: Dose | null;
  layers: { site: string; moved: number; far: number }[];
}
