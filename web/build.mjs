// Builds the page into the package and records which sources it was built from: tests/app/test_bundle.py fails when
// either side changes without the other.
import { createHash } from "node:crypto";
import { readFileSync, readdirSync, writeFileSync, mkdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, version } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = process.env.VLASCOPE_WEB_OUT ?? join(here, "..", "src", "vlascope", "app", "static");
const hash = (data) => createHash("sha256").update(data).digest("hex");

mkdirSync(out, { recursive: true });
await build({
  entryPoints: [
    { in: join(here, "src", "main.ts"), out: "app" },
    { in: join(here, "src", "app.css"), out: "app" },
    { in: join(here, "src", "notebook.ts"), out: "notebook" },
  ],
  outdir: out,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  charset: "utf8",
  legalComments: "none",
  logLevel: "warning",
});
for (const name of ["index.html", "icon.svg"]) writeFileSync(join(out, name), readFileSync(join(here, "src", name)));

const sources = readdirSync(join(here, "src")).sort();
const built = ["app.css", "app.js", "icon.svg", "index.html", "notebook.js"];
const record = {
  esbuild: version,
  sources: Object.fromEntries(sources.map((name) => [name, hash(readFileSync(join(here, "src", name)))])),
  built: Object.fromEntries(built.map((name) => [name, hash(readFileSync(join(out, name)))])),
};
writeFileSync(join(out, "build.json"), JSON.stringify(record, null, 2) + "\n");
