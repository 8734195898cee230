// Draws a circuit from the data that the page carries.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const SHOWN = 25;
  const state = { node: null, all: false };

  const svg = (name, properties = {}, ...children) => fill(document.createElementNS("http://www.w3.org/2000/svg", name), properties, children);
  const number = (value, digits = 3) => (value === null || value === undefined ? "" : (Number(value.toFixed(digits)) || 0).toFixed(digits).replace("-", "−"));

  // The graph: the embedding below, a row for each layer, the logits above; in a row heads, then the MLP.
  const nodeOf = (reader) => reader.replace(/<[qkv]>$/, "");
  const partOf = (reader) => /<([qkv])>$/.exec(reader)?.[1] ?? "";
  const used = new Set(data.edges.flatMap(([source, reader]) => [source, nodeOf(reader)]));
  const layers = [...Array(data.layers).keys()].filter((layer) => [...used].some((name) => name === `m${layer}` || name.startsWith(`a${layer}.`)));
  const ROW = 46, WIDTH = 960, EDGE = 70;
  const height = (layers.length + 2) * ROW;
  function place(name) {
    if (name === "input") return [WIDTH / 2, height - ROW / 2];
    if (name === "logits") return [WIDTH / 2, ROW / 2];
    const [, kind, layer, head] = /^([am])(\d+)(?:\.h(\d+))?$/.exec(name);
    const column = kind === "m" ? data.heads : Number(head);
    return [EDGE + ((WIDTH - 2 * EDGE) * column) / data.heads, height - (layers.indexOf(Number(layer)) + 1.5) * ROW - (kind === "m" ? ROW / 4 : 0)];
  }
  const touches = ([source, reader]) => state.node === null || source === state.node || nodeOf(reader) === state.node;

  function graph() {
    const most = Math.max(1e-30, ...data.edges.map(([, , score]) => Math.abs(score ?? 1)));
    const lines = data.edges.map((edge) => {
      const [source, reader, score] = edge;
      const [x1, y1] = place(source), [x2, y2] = place(nodeOf(reader)), share = Math.sqrt(Math.abs(score ?? most) / most);
      const bend = (y1 - y2) / 2;
      return svg("path", { class: `edge ${partOf(reader)}`, d: `M${x1},${y1} C${x1},${y1 - bend} ${x2},${y2 + bend} ${x2},${y2}`, "--weight": `${0.5 + 3 * share}px`, "--shown": touches(edge) ? 0.15 + 0.75 * share : 0.03 },
        svg("title", {}, `${source} → ${reader}${score === null ? "" : `: ${compact(score)}`}`));
    });
    const nodes = [...used, "input", "logits"].filter((name, i, all) => all.indexOf(name) === i).map((name) => {
      const [x, y] = place(name), choose = () => { state.node = state.node === name ? null : name; draw(); };
      return svg("g", { class: "spot", role: "button", tabindex: "0", "aria-pressed": String(state.node === name), "aria-label": name, transform: `translate(${x},${y})`, onclick: choose, onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); choose(); } } },
        svg("rect", { x: -24, y: -9, width: 48, height: 18, rx: 5 }), svg("text", { "text-anchor": "middle", y: 4 }, name));
    });
    const drawing = svg("svg", { class: "graph", viewBox: `0 0 ${WIDTH} ${height}`, role: "group", "aria-label": `Graph of ${data.edges.length} edges` }, lines, nodes);
    const rest = data.count > data.edges.length ? `the ${data.edges.length} largest of ${data.count} edges; ` : "";
    return card("The circuit", `${rest}thicker: larger; choose a node to see its edges`, el("p", { class: "soft key" }, ...["q", "k", "v"].map((part) => el("span", { class: `mark ${part}` }, { q: "into queries", k: "into keys", v: "into values" }[part])), el("span", { class: "mark" }, "into MLPs and logits")), el("div", { class: "scroll" }, drawing));
  }

  // Faithfulness over the fraction that is kept, on a logarithmic axis.
  function curve() {
    const points = data.evaluations.filter((one) => one.kind === "curve" && one.fraction > 0 && one.faithfulness !== null);
    if (points.length < 2) return null;
    const W = 640, H = 260, LEFT = 44, BOTTOM = 30, low = Math.log(points[0].fraction), span = Math.log(points.at(-1).fraction) - low;
    const values = points.map((one) => one.faithfulness), top = Math.max(1.1, ...values), floor = Math.min(0, ...values);
    const x = (one) => LEFT + ((W - LEFT - 12) * (Math.log(one.fraction) - low)) / span;
    const y = (value) => 8 + ((H - BOTTOM - 8) * (top - value)) / (top - floor);
    const across = (value, name) => [svg("line", { class: "rule", x1: LEFT, x2: W, y1: y(value), y2: y(value) }), svg("text", { class: "tick", x: LEFT - 6, y: y(value) + 4, "text-anchor": "end" }, name)];
    const drawing = svg("svg", { class: "curve", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `Faithfulness of ${points.length} circuits` },
      across(0, "0"), across(1, "1"), data.wanted > 0 && data.wanted < 1 ? across(data.wanted, String(data.wanted)) : null,
      svg("polyline", { points: points.map((one) => `${x(one)},${y(one.faithfulness)}`).join(" ") }),
      points.map((one) => svg("circle", { cx: x(one), cy: y(one.faithfulness), r: 3.5 }, svg("title", {}, `${one.name}: ${one.edges} edges, faithfulness ${number(one.faithfulness)}`))),
      points.map((one) => svg("text", { class: "tick", x: x(one), y: H - 8, "text-anchor": "middle" }, one.name.replace(/\.?0+%/, "%"))));
    const about = data.cpr === null ? null : `area under it (CPR) ${number(data.cpr)}, under its distance from 1 (CMD) ${number(data.cmd)}`;
    return card("Faithfulness by edges kept", about, drawing);
  }

  function table() {
    const rows = data.evaluations.map((one) => {
      const isChosen = one.kind === "curve" && data.evaluations.filter((other) => other.kind === "curve").indexOf(one) === data.chosen;
      return el("tr", { class: isChosen ? "chosen" : undefined }, el("td", {}, one.name), ...[one.edges, one.nodes].map((count) => el("td", { class: "number" }, String(count))), el("td", { class: "number" }, compact(one.metric)), el("td", { class: "number" }, number(one.faithfulness)));
    });
    const head = ["kept", "edges", "nodes", "metric", "faithfulness"].map((name, i) => el("th", { scope: "col", class: i ? "number" : undefined }, name));
    return card("Circuits", "pruned edges are counted out", el("div", { class: "scroll" }, el("table", { class: "changes" }, el("thead", {}, el("tr", {}, head)), el("tbody", {}, rows))));
  }

  function edges() {
    const listed = data.edges.filter(touches), shown = state.all ? listed : listed.slice(0, SHOWN);
    const rows = shown.map(([source, reader, score]) => el("tr", {}, el("td", {}, el("code", {}, `${source}->${reader}`)), el("td", { class: `number ${score < 0 ? "less" : "more"}` }, compact(score))));
    const more = listed.length > SHOWN && el("button", { type: "button", onclick: () => { state.all = !state.all; draw(); } }, state.all ? "fewer" : `all ${listed.length}`);
    return card(state.node === null ? "Its edges" : `Edges of ${state.node}`, `${listed.length}, the largest first`, el("div", { class: "scroll" }, el("table", { class: "changes" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "edge"), el("th", { scope: "col", class: "number" }, "score"))), el("tbody", {}, rows))), more || null);
  }

  function draw() {
    const focused = document.activeElement?.getAttribute("aria-label");
    const hero = el("header", {}, el("h1", {}, data.title), el("p", { class: "soft" }, data.model), ...data.prompts.map((text, i) => el("p", {}, el("span", { class: "soft" }, i ? "corrupt: " : "clean: "), text)),
      el("p", { class: "soft" }, `${data.pairs} pair${data.pairs > 1 ? "s" : ""}; the whole model${data.noising ? "" : ", on the corrupt prompt,"} ${compact(data.whole)}, without any edge ${compact(data.empty)}; cut edges carry ${data.alternative}${data.pruned ? "" : "; not pruned"}`));
    page.replaceChildren(...[hero, data.edges.length ? graph() : null, curve(), table(), data.edges.length ? edges() : null, el("footer", {}, data.footer)].filter(Boolean));
    if (focused) page.querySelector(`[aria-label="${CSS.escape(focused)}"]`)?.focus();
  }
  draw();
})();
