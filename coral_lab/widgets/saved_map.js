// The page of a saved map: points, neighbours, lasso and search, from what the page itself holds.
const at = (id) => document.getElementById(id);

function bytesOf(text) {
  const found = atob(text);
  const bytes = new Uint8Array(found.length);
  for (let i = 0; i < found.length; i++) bytes[i] = found.charCodeAt(i);
  return bytes;
}

async function unpacked(id) {
  const packed = new Blob([bytesOf(at(id).textContent)]).stream();
  const text = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).text();
  at(id).remove();
  return text;
}

function run(code) {
  const script = document.createElement("script");
  script.src = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  return new Promise((done, failed) => {
    script.onload = done;
    script.onerror = failed;
    document.head.append(script);
  });
}

function element(name, text = "", ...children) {
  const made = document.createElement(name);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

async function main() {
  if (!("DecompressionStream" in window)) {
    at("said").textContent = "This page needs a browser of 2023 or newer, which can unpack what it holds.";
    return;
  }
  const map = JSON.parse(await unpacked("data"));
  await run(await unpacked("plotly"));
  const numbers = (text, Kind) => new Kind(bytesOf(text).buffer);
  const x = numbers(map.x, Float32Array);
  const y = numbers(map.y, Float32Array);
  const near = numbers(map.near, Uint32Array);
  const torn = numbers(map.torn, Uint8Array);
  const webgl = Boolean(document.createElement("canvas").getContext("webgl"));
  const everything = map.titles.map((_, i) => i);
  const lower = map.titles.map((title) => title.toLowerCase());
  let lines = [];
  let marked = [];

  function picture(i, size) {
    if (!map.pictures[i]) return element("div", "no picture");
    const image = element("img");
    image.src = map.pictures[i];
    image.alt = map.titles[i];
    image.width = size;
    return image;
  }

  function card(i, note = "") {
    const made = element("figure", "", picture(i, 96), element("figcaption", map.titles[i]));
    if (note) made.append(element("small", note));
    made.dataset.id = map.ids[i];
    made.addEventListener("click", () => lookAt(i));
    return made;
  }

  function tell(i) {
    const facts = map.facts[i].map((fact) => element("small", fact));
    at("detail").replaceChildren(picture(i, 160), element("b", map.titles[i]), element("small", `id ${map.ids[i]}`), ...facts);
  }

  function show(chosen, said, notes = []) {
    const shown = chosen.slice(0, map.shown);
    at("gallery").replaceChildren(...shown.map((i, n) => card(i, notes[n])));
    const more = chosen.length > shown.length ? `, the first ${shown.length} shown` : "";
    at("said").textContent = said + more;
    at("ids").value = chosen.map((i) => map.ids[i]).join("\n");
  }

  // What is chosen otherwise than by a lasso takes the lasso away; the rest fades.
  function mark(chosen) {
    marked = chosen;
    delete map.layout.selections;
  }

  function line(name, colour, dash, from, ends) {
    const path = (own, start) => ends.flatMap((i) => [start, own[i], null]);
    return {
      type: "scatter", mode: "lines", name, hoverinfo: "skip", line: { color: colour, dash, width: 1.5 },
      x: path(x, from[0]), y: path(y, from[1]),
    };
  }

  function join(from, neighbours, lost) {
    lines = [
      line("near in the space", "#000000", "solid", from, neighbours.filter((_, n) => !lost[n])),
      line("torn away by the map", "#d55e00", "dash", from, neighbours.filter((_, n) => lost[n])),
    ];
    draw();
  }

  function lookAt(i) {
    const own = [...near.subarray(i * map.k, (i + 1) * map.k)];
    const lost = [...torn.subarray(i * map.k, (i + 1) * map.k)];
    const notes = ["the product", ...lost.map((gone, n) => `neighbour ${n + 1}${gone ? ", torn away" : ""}`)];
    const count = lost.filter(Boolean).length;
    show([i, ...own], `${count} of ${own.length} neighbours are torn away`, notes);
    tell(i);
    mark([i, ...own]);
    join([x[i], y[i]], own, lost);
  }

  function lookFrom(query) {
    const count = query.right.filter(Boolean).length;
    const notes = query.near.map(
      (_, n) => `${n + 1}${query.torn[n] ? ", torn away" : ""}${query.right[n] ? ", ✓ positive" : ""}`,
    );
    show(query.near, `${count} of the ${query.near.length} nearest to ${query.id} are right answers`, notes);
    mark(query.near);
    join(query.place, query.near, query.torn);
  }

  function points() {
    const colours = map.colours[at("colour").value];
    const codes = numbers(colours.codes, Uint8Array);
    return colours.looks.map(([name, colour, symbol], code) => {
      const own = everything.filter((i) => codes[i] === code);
      return {
        type: webgl ? "scattergl" : "scatter", mode: "markers", name, customdata: own, hoverinfo: "none",
        x: own.map((i) => x[i]), y: own.map((i) => y[i]),
        marker: { color: colour, symbol, size: 7, opacity: 0.8, line: { width: 0 } },
        unselected: { marker: { opacity: 0.12 } },
      };
    });
  }

  let drawn = [];
  let drawing = 0; // plotly tells of a lasso that is taken away as if the reader had done it
  function draw(anew = false) {
    if (anew || !drawn.length) drawn = points();
    const own = new Set(marked);
    const fading = marked.length || map.layout.selections?.length;
    for (const trace of drawn) {
      trace.selectedpoints = fading ? trace.customdata.flatMap((i, n) => (own.has(i) ? [n] : [])) : null;
    }
    const stars = {
      type: "scatter", mode: "markers", name: "queries", hoverinfo: "text", showlegend: map.queries.length > 0,
      x: map.queries.map((own) => own.place[0]), y: map.queries.map((own) => own.place[1]),
      text: map.queries.map((own) => own.shown), marker: { symbol: "star", size: 15, color: "#000000" },
    };
    drawing += 1;
    const done = Plotly.react("map", [...drawn, ...lines, stars], map.layout, {
      displaylogo: false, responsive: true, showSendToCloud: false,
    });
    return done.finally(() => { drawing -= 1; });
  }

  map.colours.forEach((own, n) => {
    const option = element("option", own.name);
    option.value = n;
    at("colour").append(option);
  });
  map.queries.forEach((own, n) => {
    const option = element("option", own.id);
    option.value = n;
    at("query").append(option);
  });
  at("query").parentElement.hidden = !map.queries.length;
  await draw();
  const chart = at("map");
  const placesOf = (event) => (event?.points ?? []).map((point) => point.customdata).filter(Number.isInteger);
  chart.on("plotly_hover", (event) => placesOf(event).slice(0, 1).forEach(tell));
  chart.on("plotly_click", (event) => {
    const [i] = placesOf(event);
    if (i !== undefined) lookAt(i);
    else if (event.points[0].data.name === "queries") lookFrom(map.queries[event.points[0].pointNumber]);
  });
  chart.on("plotly_selected", (event) => {
    if (event && !drawing) {
      const chosen = placesOf(event).sort((a, b) => a - b);
      marked = chosen;
      show(chosen, `${chosen.length} chosen`);
    }
  });
  chart.on("plotly_deselect", () => {
    if (drawing) return;
    marked = [];
    show([], "");
  });
  at("colour").addEventListener("change", () => draw(true));
  at("query").addEventListener("change", () => at("query").value && lookFrom(map.queries[at("query").value]));
  at("find").addEventListener("change", () => {
    const words = at("find").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const named = map.ids.indexOf(at("find").value.trim());
    if (named >= 0) return lookAt(named);
    const found = words.length ? everything.filter((i) => words.every((word) => lower[i].includes(word))) : [];
    show(found, `${found.length} titles have these words`);
    lines = [];
    mark(found);
    draw();
  });
  at("copy").addEventListener("click", () => {
    at("ids").select();
    document.execCommand("copy"); // the clipboard's newer interface is closed to pages that are files
  });
  at("said").textContent = `${map.titles.length} products, drawn ${webgl ? "with WebGL" : "as SVG, for there is no WebGL"}. ${map.note}`;
  document.body.dataset.ready = "yes";
}

main().catch((error) => {
  at("said").textContent = `✗ ${error}`;
});
