// Similarity without a server: the page carries quantised eigenvectors of every token that it shows. A click takes
// the inner product of one row with all others; what is unlike the clicked token is darkened, on every panel.
(() => {
  "use strict";
  const opened = performance.now();
  const $ = (id) => document.getElementById(id);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  // In one file the tokens are JSON in the page; in a folder a script beside it has set them.
  const data = window.vlascopeTokens ?? JSON.parse($("tokens").textContent);
  const { n, n_eig: width } = data;
  const vectors = new Int8Array(bytes(data.vectors).buffer);
  const labels = Object.entries(data.labels).map(([k, text]) => [k, new Uint16Array(bytes(text).buffer)]);
  const grids = [...document.querySelectorAll(".grid")];
  const words = [...document.querySelectorAll("[data-t]")];
  const tip = $("tip"), bar = $("bar");
  const shade = new Uint8ClampedArray(n);
  const cursor = Object.assign(document.createElement("div"), { className: "patch" });
  let active = false;
  const times = (window.vlascopeTimes = { clickMs: 0, paintMs: 0, readyMs: 0, scriptMs: 0, n }); // what tests and benchmarks read

  const tokenAt = (grid, event) => {
    const box = grid.getBoundingClientRect();
    const rows = +grid.dataset.r, cols = +grid.dataset.c;
    // A click comes in whole pixels, a move in parts of them: both are taken as whole ones, or they would differ.
    const x = Math.floor(event.clientX) + 0.5 - box.left, y = Math.floor(event.clientY) + 0.5 - box.top;
    const col = Math.min(cols - 1, Math.max(0, Math.floor((x / box.width) * cols)));
    const row = Math.min(rows - 1, Math.max(0, Math.floor((y / box.height) * rows)));
    return { token: +grid.dataset.o + row * cols + col, row, col };
  };

  const describe = (token, place) =>
    [place, labels.map(([k, of]) => `concept ${of[token] + 1} of ${k}`).join(" · ")].join("\n");

  const put = (mark, grid, row, col) => {
    const rows = +grid.dataset.r, cols = +grid.dataset.c;
    mark.style.cssText = `left:${(100 * col) / cols}%;top:${(100 * row) / rows}%;width:${100 / cols}%;height:${100 / rows}%`;
    grid.append(mark);
  };

  // The token that was clicked is outlined wherever the page shows it.
  const unmark = () => {
    document.querySelectorAll(".patch.clicked").forEach((mark) => mark.remove());
    document.querySelectorAll(".words .clicked").forEach((word) => word.classList.remove("clicked"));
  };
  const outline = (token) => {
    unmark();
    for (const grid of grids) {
      const at = token - grid.dataset.o, cols = +grid.dataset.c;
      if (at < 0 || at >= grid.dataset.r * cols) continue;
      put(Object.assign(document.createElement("div"), { className: "patch clicked" }), grid, Math.floor(at / cols), at % cols);
    }
    for (const word of words) if (+word.dataset.t === token) word.classList.add("clicked");
  };

  const place = (event, text) => {
    tip.textContent = text;
    tip.hidden = false;
    const x = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8);
    const y = event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18;
    tip.style.left = `${Math.max(8, x)}px`;
    tip.style.top = `${y}px`;
  };

  const draw = (grid) => {
    if (grid.dataset.drawn === String(active)) return;
    const rows = +grid.dataset.r, cols = +grid.dataset.c, offset = +grid.dataset.o, fine = +(grid.dataset.f ?? 1);
    let canvas = grid.querySelector("canvas");
    if (!canvas) {
      canvas = document.createElement("canvas");
      canvas.width = cols * fine;
      canvas.height = rows * fine;
      grid.append(canvas);
    }
    const pixels = new ImageData(cols * fine, rows * fine);
    const values = new Uint32Array(pixels.data.buffer);
    for (let row = 0, at = 0; row < rows * fine; row++) {
      const first = offset + Math.floor(row / fine) * cols;
      // Black, and as dense as the shade: alpha is the highest byte.
      for (let col = 0; col < cols; col++, at += fine) values.fill(shade[first + col] << 24, at, at + fine);
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
    canvas.hidden = !active;
    grid.dataset.drawn = String(active);
  };

  // Panels out of sight are drawn when they scroll into view.
  const seen = new Set();
  const watcher = new IntersectionObserver((entries) => {
    for (const e of entries) {
      if (e.isIntersecting) { seen.add(e.target); if (active) draw(e.target); } else seen.delete(e.target);
    }
  }, { rootMargin: "200px" });
  grids.forEach((grid) => watcher.observe(grid));

  const inkOn = (rgb) => {
    const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 3294.6 : ((v / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
  };
  const inks = words.map((word) => {
    const style = getComputedStyle(word);
    return [word, style.backgroundColor.match(/\d+/g).slice(0, 3).map(Number), style.color];
  });

  const paint = () => {
    for (const grid of grids) grid.dataset.drawn = "";
    for (const grid of seen) draw(grid);
    for (const [word, [r, g, b], ink] of inks) {
      // As dark as the patches, and never too faint to be read.
      const light = active ? 1 - shade[+word.dataset.t] / 255 : 1;
      const now = [r, g, b].map((v) => Math.round(v * light));
      word.style.background = `rgb(${now})`;
      word.style.color = active ? inkOn(now) : ink;
    }
  };

  const select = (token, where, clicked) => {
    const start = performance.now();
    times.paintMs = 0;
    const query = vectors.subarray(token * width, (token + 1) * width);
    for (let i = 0, at = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < width; j++) sum += query[j] * vectors[at++];
      const likeness = Math.max(0, sum / 16129);
      shade[i] = 228 * (1 - likeness * likeness);
    }
    active = true;
    outline(token);
    for (const grid of grids) grid.querySelector("canvas")?.removeAttribute("hidden");
    paint();
    const ms = performance.now() - start;
    bar.firstElementChild.textContent = `Bright is similar to ${where} (cosine of eigenvectors${words.length ? ", patches and words together" : ""}), ${n.toLocaleString("en")} tokens in ${ms.toFixed(0)} ms`;
    bar.hidden = false;
    times.clickMs = ms;
    // From the click itself to the end of the frame that shows the answer.
    requestAnimationFrame(() => setTimeout(() => { times.paintMs = performance.now() - clicked; }));
  };

  const clear = () => {
    active = false;
    bar.hidden = true;
    unmark();
    for (const grid of grids) { const c = grid.querySelector("canvas"); if (c) c.hidden = true; }
    paint();
  };

  const pick = (grid, at) => {
    const where = grid.closest(".panel").dataset.where || "";
    select(at.token, `${where}, row ${at.row + 1}, column ${at.col + 1}`, at.stamp);
  };
  const say = (grid, at, event) => {
    const where = grid.closest(".panel").dataset.where || "";
    place(event, describe(at.token, `${where} · row ${at.row + 1}, column ${at.col + 1}`));
  };
  for (const grid of grids) {
    grid.addEventListener("pointermove", (event) => say(grid, tokenAt(grid, event), event));
    grid.addEventListener("pointerleave", () => { tip.hidden = true; });
    grid.addEventListener("click", (event) => pick(grid, { ...tokenAt(grid, event), stamp: event.timeStamp }));
  }
  for (const word of words) {
    const token = +word.dataset.t, name = `“${word.textContent.trim()}”, ${word.title}`;
    const about = `${name}\n${word.dataset.concept}`; // of the cut that gives the word its colour
    word.removeAttribute("title");
    word.setAttribute("role", "button");
    word.addEventListener("pointermove", (event) => place(event, about));
    word.addEventListener("pointerleave", () => { tip.hidden = true; });
    word.addEventListener("click", (event) => select(token, name, event.timeStamp));
    word.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      select(token, name, event.timeStamp);
    });
  }

  // With the keyboard: Tab goes to a section's panels (or words), Shift+arrows to the next of them, arrows move over the
  // patches, Enter asks what is similar. One stop per section, so that Tab still leads through the page.
  const rove = (things, columns) => {
    things.forEach((thing, i) => { thing.tabIndex = i ? -1 : 0; });
    return (from, key) => {
      const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[key];
      const next = step === undefined ? undefined : things[things.indexOf(from) + step];
      if (!next) return;
      from.tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    };
  };
  for (const table of document.querySelectorAll(".words table")) {
    const inside = [...table.querySelectorAll("[data-t]")];
    const go = rove(inside, table.rows.length ? table.rows[0].querySelectorAll("[data-t]").length : 1);
    for (const word of inside) {
      word.addEventListener("keydown", (event) => {
        if (!event.key.startsWith("Arrow")) return;
        event.preventDefault();
        go(word, event.key);
      });
    }
  }
  for (const section of document.querySelectorAll("section")) {
    const panels = [...section.querySelectorAll(".panel")].filter((panel) => panel.querySelector(".grid"));
    const sheet = panels[0]?.closest(".sheet");
    const perRow = sheet ? panels.filter((panel) => panel.offsetTop === panels[0].offsetTop).length : 1;
    const go = rove(panels, perRow);
    for (const panel of panels) {
      const grid = panel.querySelector(".grid"), at = { row: 0, col: 0 };
      const mark = () => {
        const rows = +grid.dataset.r, cols = +grid.dataset.c, box = grid.getBoundingClientRect();
        const token = +grid.dataset.o + at.row * cols + at.col;
        put(cursor, grid, at.row, at.col);
        say(grid, { token, ...at }, { clientX: box.left + ((at.col + 1) * box.width) / cols, clientY: box.top + (at.row * box.height) / rows });
        return token;
      };
      panel.addEventListener("focus", () => { if (panel.matches(":focus-visible")) mark(); });
      panel.addEventListener("blur", () => { cursor.remove(); tip.hidden = true; });
      panel.addEventListener("keydown", (event) => {
        if (event.ctrlKey || event.metaKey || event.altKey) return;
        if (event.key === "Enter") return pick(grid, { token: mark(), ...at, stamp: event.timeStamp });
        if (!event.key.startsWith("Arrow")) return;
        event.preventDefault();
        if (event.shiftKey) return go(panel, event.key);
        at.row = Math.min(+grid.dataset.r - 1, Math.max(0, at.row + ({ ArrowUp: -1, ArrowDown: 1 }[event.key] ?? 0)));
        at.col = Math.min(+grid.dataset.c - 1, Math.max(0, at.col + ({ ArrowLeft: -1, ArrowRight: 1 }[event.key] ?? 0)));
        mark();
      });
    }
  }
  bar.querySelector("button").addEventListener("click", clear);
  addEventListener("keydown", (event) => { if (event.key === "Escape") clear(); });

  // Column titles stay under the navigation, which may take two lines; a table wider than the page scrolls by itself,
  // and its edge fades where it goes on.
  const nav = document.querySelector("nav"), scrollers = [...document.querySelectorAll(".table-scroll, .chart-scroll, .words-scroll")];
  const edges = (box) => {
    box.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  const fit = () => {
    document.documentElement.style.setProperty("--nav", `${nav.offsetHeight}px`);
    for (const box of scrollers) {
      box.classList.remove("fits");
      box.classList.toggle("fits", box.scrollWidth <= box.clientWidth + 1);
      edges(box);
    }
  };
  for (const box of scrollers) box.addEventListener("scroll", () => edges(box), { passive: true });
  addEventListener("resize", fit);
  fit();

  $("mix").addEventListener("input", (event) => {
    document.documentElement.style.setProperty("--mix", event.target.value / 100);
  });

  // Own controls under the video (the browser's would cover the facts in its lower part). The cursor of the time line
  // follows the video; a click on the time line moves the video there.
  for (const media of document.querySelectorAll(".media")) {
    const video = media.querySelector("video");
    if (!video) continue;
    const player = media.querySelector(".player"), chart = media.querySelector(".chart");
    const [button, slider, output] = player.children;
    const fps = +video.dataset.fps, count = +slider.max + 1;
    const cursor = chart?.querySelector(".cursor"), left = +(chart?.dataset.left ?? 0), right = +(chart?.dataset.right ?? 1);
    const show = () => {
      const frame = Math.min(count - 1, Math.floor(video.currentTime * fps + 0.01));
      slider.value = frame;
      output.textContent = `frame ${frame + 1} of ${count}`;
      button.textContent = video.paused ? "Play" : "Pause";
      if (cursor) {
        const x = left + ((right - left) * frame) / Math.max(1, count - 1);
        cursor.setAttribute("x1", x);
        cursor.setAttribute("x2", x);
        cursor.setAttribute("visibility", "visible");
      }
      if (!video.paused) requestAnimationFrame(show);
    };
    const seek = (frame) => {
      video.currentTime = (Math.min(count - 1, Math.max(0, frame)) + 0.5) / fps;
    };
    // What is shown when it stops may be a frame behind the clock: the middle of the frame is sought, so that they agree.
    const settle = () => { if (!video.ended) seek(Math.floor(video.currentTime * fps + 0.01)); };
    const toggle = () => (video.paused ? video.play() : video.pause());
    video.controls = false;
    player.hidden = false;
    for (const name of ["play", "pause", "seeked"]) video.addEventListener(name, show);
    video.addEventListener("pause", settle);
    video.addEventListener("click", toggle);
    button.addEventListener("click", toggle);
    slider.addEventListener("input", () => { video.pause(); seek(+slider.value); });
    chart?.addEventListener("click", (event) => {
      const box = chart.getBoundingClientRect();
      const x = ((event.clientX - box.left) / box.width) * chart.viewBox.baseVal.width;
      seek(Math.round(((x - left) / (right - left)) * (count - 1)));
    });
    show();
  }
  times.readyMs = performance.now();
  times.scriptMs = times.readyMs - opened;
})();
