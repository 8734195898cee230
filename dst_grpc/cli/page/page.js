// Draws an explanation from the data that the page carries.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page");
  const SHOWN = 12;
  const LARGEST_GRID = 64;
  const state = { group: data.groups[0], sort: "size", up: false, all: false, head: Object.keys(data.attention)[0] };

  const visible = (text) => text.replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u202a-\u202e\u2066-\u2069]/g, "�");
  function token(text) {
    const [, gaps, rest] = /^( *)([^]*)$/.exec(text);
    return el("span", { class: "token", title: JSON.stringify(text) }, gaps && el("span", { class: "gap" }, "·".repeat(gaps.length)), visible(rest));
  }
  const tone = (value) => (value < 0 ? "var(--less)" : "var(--more)");
  const number = (value, decimals = 2) => (Number(value.toFixed(decimals)) === 0 ? "" : value < 0 ? "−" : "+") + Math.abs(value).toFixed(decimals);
  const percent = (share) => (share > 0 && share < 0.005 ? "<1%" : share >= 0.995 && share < 1 ? ">99%" : `${Math.round(100 * share)}%`);
  const said = (value, decimals, signed = true) => el("span", { class: `number ${value < 0 ? "less" : signed && value > 0 ? "more" : ""}` }, signed || value < 0 ? number(value, decimals) : value.toFixed(decimals));
  const largest = (values) => Math.max(1e-30, ...values.map((value) => Math.abs(value ?? 0)));
  const tokens = (scored) => el("span", { class: "tokens" }, scored.map(token));

  function hero() {
    const shown = el("header", {}, el("h1", {}, data.title), el("p", { class: "soft" }, data.model));
    if (data.target !== null && data.question) shown.append(el("p", {}, `${data.question}: `, el("span", { class: `big number ${data.target < 0 ? "less" : "more"}` }, number(data.target, data.decimals))));
    if (data.hint) shown.append(el("p", { role: "note" }, data.hint));
    if (data.path.length) shown.append(el("p", {}, "Traced: output ", ...data.path.flatMap((step) => ["← ", el("code", {}, step), " "])));
    return shown;
  }

  function bars(rows) {
    return el("div", { class: "bars" }, rows.flatMap(([text, share]) => [token(text), el("div", { class: "bar", "--size": `${100 * share}%`, "--tone": "var(--seen)" }), el("span", { class: "number" }, percent(share))]));
  }

  function strip() {
    const { sums, decimals, signed } = state.group;
    const most = largest(sums);
    // The residual at one layer says again what the others do: no sum over them means anything.
    const heat = (i) => (sums.length ? { "--tone": tone(sums[i]), "--heat": `${Math.round(60 * Math.abs(sums[i]) / most)}%` } : {});
    const item = (text, i) => el("li", heat(i), token(text), sums.length ? said(sums[i], decimals, signed) : null, el("span", { class: "position soft" }, String(i)));
    return el("ol", { class: "strip", start: "0", "aria-label": `${state.group.title} by token` }, data.tokens.map(item));
  }

  const COLUMNS = [["node", "node"], ["tokens", "tokens"], ["value", "effect"], [null, "promotes, demotes"], [null, "excited by"]];
  const orders = {
    size: (a, b) => (state.group.signed ? Math.abs(a.value) - Math.abs(b.value) : a.value - b.value),
    value: (a, b) => a.value - b.value,
    node: (a, b) => a.order[0] - b.order[0] || a.order[1] - b.order[1] || a.order[2] - b.order[2],
    tokens: (a, b) => a.at[0] - b.at[0] || (a.at[1] ?? -1) - (b.at[1] ?? -1),
  };
  function heading([key, name]) {
    const label = key === "value" && !state.group.signed ? "value" : name;
    if (!key) return el("th", { scope: "col", role: "columnheader", class: "plain" }, label);
    const sorted = state.sort === key ? (state.up ? "ascending" : "descending") : key === "value" && state.sort === "size" ? "other" : "none";
    const sort = () => {
      state.up = state.sort === key ? !state.up : key !== "value";
      state.sort = key;
      draw(`[data-sort="${key}"]`);
    };
    return el("th", { scope: "col", role: "columnheader", "aria-sort": sorted }, el("button", { type: "button", "data-sort": key, onclick: sort }, label));
  }
  const way = (arrow, name, colour, texts) => el("span", { class: "tokens" }, el("span", { class: colour, role: "img", "aria-label": name }, arrow), texts.map(token));
  function place(row) {
    const parts = row.at.map((at) => token(data.tokens[at] ?? String(at)));
    return el("span", { class: "tokens" }, parts.flatMap((part, i) => (i ? [el("span", { class: "soft" }, "←"), part] : [part])));
  }
  // Of a latent of attention: the tokens of the prompt that it comes from.
  const excited = (row) => (row.from ? row.from.map(([at]) => data.tokens[at]) : row.excited);
  function look(row) {
    state.head = row.head;
    draw(`[data-node="${row.node}"]`);
    document.getElementById("attention").scrollIntoView({ block: "nearest" });
  }
  function nodes() {
    const { rows, decimals, signed, title, completeness } = state.group;
    const order = orders[state.sort];
    const sorted = [...rows].sort((a, b) => (state.up ? order(a, b) : order(b, a)));
    const shown = state.all ? sorted : sorted.slice(0, SHOWN);
    const most = largest(rows.map((row) => row.value));
    const cell = (name, content) => el("td", { role: "cell", "data-name": name }, content);
    const line = (row) => {
      const name = row.head in data.attention
        ? el("button", { type: "button", class: "node", title: `Show the attention of ${row.head}`, onclick: () => look(row), "data-node": row.node }, row.node)
        : el("span", { class: "node" }, row.node);
      const bar = el("div", { class: "bar", "aria-hidden": "true", "--size": `${100 * Math.abs(row.value) / most}%`, "--tone": tone(row.value) });
      return el("tr", { role: "row", class: row.head !== undefined && row.head === state.head ? "chosen" : undefined },
        cell("node", name), cell("tokens", place(row)), cell(signed ? "effect" : "value", el("div", { class: "value" }, said(row.value, decimals, signed), bar)),
        cell("promotes, demotes", row.promotes.length ? el("div", { class: "writes" }, way("↑", "promotes", "more", row.promotes), way("↓", "demotes", "less", row.demotes)) : null),
        cell("excited by", excited(row).length ? tokens(excited(row)) : null));
    };
    const table = el("table", { class: "nodes", role: "table", "aria-label": title }, el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, COLUMNS.map(heading))), el("tbody", { role: "rowgroup" }, shown.map(line)));
    const more = rows.length > SHOWN && el("p", {}, el("button", { type: "button", "data-more": true, onclick: () => { state.all = !state.all; draw("[data-more]"); } }, state.all ? `Show ${SHOWN}` : `Show all ${rows.length}`));
    return [...completeness.map((line) => el("p", { class: "soft" }, line)), residuals(), el("div", { class: "scroll" }, table), more || null];
  }
  const PARTS = ["layer", "residual", "= latents", "+ error", "+ decoder bias", "listed"];
  function residuals() {
    const { residuals: layers, decimals, title } = state.group;
    if (!layers.length) return null;
    const line = ([layer, ...values]) => el("tr", {}, el("th", { scope: "row" }, String(layer)), values.map((value) => el("td", { class: "number" }, said(value, decimals))));
    return el("div", { class: "scroll" }, el("table", { class: "changes", "aria-label": `${title} by layer` }, el("thead", {}, el("tr", {}, PARTS.map((name, i) => el("th", { scope: "col", class: i ? "number" : undefined }, name)))), el("tbody", {}, layers.map(line))));
  }

  function attention() {
    const heads = Object.keys(data.attention);
    if (!heads.length) return null;
    const size = data.tokens.length;
    const rows = data.tokens.map(() => new Map());
    for (const [query, key, share] of data.attention[state.head]) rows[query].set(key, share);
    const choice = el("select", { id: "head", onchange: (event) => { state.head = event.target.value; draw("#head"); } }, heads.map((head) => el("option", { value: head, selected: head === state.head }, head)));
    const read = el("output", { "aria-live": "polite", class: "soft" }, "Point at a cell to read it.");
    const say = (query, key) => { read.textContent = `${JSON.stringify(data.tokens[query])} (${query}) reads ${JSON.stringify(data.tokens[key])} (${key}): ${percent(rows[query].get(key) ?? 0)}`; };
    let picture;
    if (size <= LARGEST_GRID) {
      const cell = (query) => (_, key) => key > query ? el("td", { class: "future" }) : el("td", { "data-at": `${query},${key}`, "--heat": `${Math.round(100 * (rows[query].get(key) ?? 0))}%` }, el("span", { class: "hidden" }, percent(rows[query].get(key) ?? 0)));
      const column = (text) => el("th", { scope: "col" }, visible(text));
      const line = (text, query) => el("tr", {}, el("th", { scope: "row" }, visible(text)), data.tokens.map(cell(query)));
      picture = el("table", { class: "grid", "--cell": size <= 24 ? "20px" : "13px" }, el("caption", { class: "hidden" }, `How much each token, by row, reads of each earlier one through ${state.head}`), el("tbody", {}, data.tokens.map(line)), el("tfoot", {}, el("tr", {}, el("td", { class: "future" }), data.tokens.map(column))));
      const point = (event) => { const at = event.target.closest("[data-at]"); if (at) say(...at.dataset.at.split(",").map(Number)); };
      picture.addEventListener("pointerover", point);
      picture.addEventListener("click", point);
    } else {
      const line = (text, query) => el("li", {}, token(text), " reads ", ...[...rows[query]].sort((a, b) => b[1] - a[1]).slice(0, 3).flatMap(([key, share]) => [token(data.tokens[key]), ` ${percent(share)} `]));
      picture = el("ol", { start: "0" }, data.tokens.map(line));
    }
    const shown = card("Attention", "by row, the tokens; by column, what they read", el("p", {}, el("label", { for: "head" }, "Head "), choice), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": `Attention of ${state.head}` }, picture), size <= LARGEST_GRID ? read : null);
    shown.id = "attention";
    return shown;
  }

  function comparison(found) {
    const change = (before, after, decimals) => [before, after, after - before].map((value) => el("td", { class: "number" }, said(value, decimals)));
    const table = (name, head, rows) => el("div", {}, el("h3", {}, name), el("div", { class: "scroll" }, el("table", { class: "changes", "aria-label": name }, el("thead", {}, el("tr", {}, head.map((text, i) => el("th", { scope: "col", class: i ? "number" : undefined }, text)))), el("tbody", {}, rows))));
    const tables = found.groups.filter((group) => group.rows.length).map((group) => table(`${group.title} that change most`, ["node", "before", "after", "change"],
      group.rows.map((row) => el("tr", {}, el("td", {}, el("span", { class: "node" }, row.node), " ", place(row)), change(row.before, row.after, group.decimals)))));
    if (found.guesses.length) tables.unshift(table("What comes next", ["token", "before", "after"], found.guesses.map(([text, before, after]) =>
      el("tr", {}, el("td", {}, token(text)), el("td", { class: "number" }, percent(before)), el("td", { class: `number ${after < before ? "less" : "more"}` }, percent(after))))));
    const whole = found.before === null || found.after === null ? null : el("p", {}, `${found.question}: `, said(found.before, found.decimals), " → ", el("span", { class: `big number ${found.after < 0 ? "less" : "more"}` }, number(found.after, found.decimals)), " (", said(found.after - found.before, found.decimals), ")");
    return card(`With ${found.ablations.join(", ")}`, "beside the prompt as it is", whole, el("div", { class: "beside" }, tables));
  }

  function chooser() {
    const choose = (group) => () => { Object.assign(state, { group, sort: "size", up: false, all: false }); draw(`[data-group="${group.id}"]`); };
    return el("div", { class: "choices", role: "group", "aria-label": "What to show of the nodes" }, data.groups.map((group) => el("button", { type: "button", "data-group": group.id, "aria-pressed": String(group === state.group), onclick: choose(group) }, group.title)));
  }

  function draw(focus) {
    const seen = attention();
    page.replaceChildren(
      hero(),
      card("The prompt", state.group.sums.length ? `${state.group.title.toLowerCase()} by token; what a head reads counts for the token that it reads` : "its tokens", chooser(), strip()),
      ...(data.comparisons.length ? data.comparisons.map(comparison) : data.guesses.length ? [card("What comes next", `after ${JSON.stringify(data.tokens[data.after])}`, bars(data.guesses))] : []),
      el("div", { class: seen ? "pair two" : "pair" }, card(state.group.title, state.group.about, ...nodes()), seen),
      el("footer", {}, data.footer));
    if (focus) page.querySelector(focus)?.focus({ preventScroll: true });
  }
  draw();
})();
