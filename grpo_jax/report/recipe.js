// A recipe: what came from what, the table of its stages, what each answers.

/** What an arrow may stand for; page.css has how each is drawn. */
const GIVES = {
  start: 'begins with its weights', data: 'learns from its completions',
  teacher: 'comes near to it', judge: 'is judged by it' };
const SIGNS = { 'done': '✓', 'in progress': '◐', 'not begun': '' };
const KINDS = ['sample', 'pretrain', 'sft', 'grpo', 'distill', 'reward_model'];

function recipeSections() {
  return [
    ['recipe', 'Recipe', diagram],
    ['stages', 'Stages', stages],
    ['answers', 'What each stage answers', answers],
    ['reflections', 'Reflection over the stages', reflections],
  ];
}

/** Of all seeds: begun by one is in progress, done is done by all. */
function stateOf(name) {
  const all = new Set(DATA.recipe.seeds.map((seed) => seed.state[name]));
  return all.size === 1 ? [...all][0] : 'in progress';
}

// The diagram.

const BOX = { height: 40, gap: 10, bend: 4, along: 24 };

/**
 * Rows of boxes, each below all that it takes from, at most so many in a row.
 * An arrow that passes a row has a bend there, which is kept free.
 */
function layered(stages, most) {
  const nodes = new Map(), filled = [], rows = [], arrows = [];
  for (const stage of stages) {
    let row = Math.max(-1, ...stage.from.map(([name]) => nodes.get(name).row)) + 1;
    while ((filled[row] ?? 0) >= most) row++;
    filled[row] = (filled[row] ?? 0) + 1;
    nodes.set(stage.name, { stage, row, before: [], after: [] });
    (rows[row] ??= []).push(nodes.get(stage.name));
  }
  for (const stage of stages) {
    for (const [name, how] of stage.from) {
      const path = [nodes.get(name)], end = nodes.get(stage.name);
      for (let row = path[0].row + 1; row < end.row; row++) {
        path.push({ row, before: [], after: [] });
        rows[row].push(path.at(-1));
      }
      path.push(end);
      path.slice(1).forEach((node, i) => {
        node.before.push(path[i]);
        path[i].after.push(node);
      });
      arrows.push({ path, how, from: name, to: stage.name });
    }
  }
  return { rows: untangled(rows), arrows };
}

/** Each row in the order of what it is bound to, so that few arrows cross. */
function untangled(rows) {
  const number = () => rows.forEach((row) => row.forEach((node, i) => {
    node.place = (i + 0.5) / row.length;
  }));
  let best = null;
  number();
  for (let pass = 0; pass < 12; pass++) {
    const side = pass % 2 ? 'after' : 'before';
    for (const row of pass % 2 ? [...rows].reverse() : rows) {
      const wish = new Map(row.map((node) =>
        [node, mean(node[side].map((x) => x.place)) ?? node.place]));
      row.sort((a, b) => wish.get(a) - wish.get(b));
      number();
    }
    const count = sum(rows.map(crossings));
    if (!best || count < best.count) best = { count, rows: rows.map((row) => [...row]) };
  }
  rows = best.rows;
  number();
  return rows;
}

function crossings(row) {
  const ends = row.flatMap((node) => node.after.map((x) => [node.place, x.place]));
  return sum(ends.map(([a, b], i) => ends.slice(0, i).filter(
    ([c, d]) => (a - c) * (b - d) < 0).length));
}

/** Puts `at` on each node: near what it is bound to, within 0 to `extent`. */
function place(rows, size, extent) {
  const half = (node) => ((node.stage ? size : BOX.bend) + BOX.gap) / 2;
  for (let pass = 0; pass < 24; pass++) {
    for (const row of pass % 2 ? [...rows].reverse() : rows) {
      const side = pass % 2 ? 'after' : 'before';
      for (const node of row) {
        node.at = mean(node[side].map((x) => x.at)) ?? node.at
          ?? node.place * extent;
      }
      let edge = extent;
      for (const node of [...row].reverse()) {
        node.at = Math.min(node.at, edge - half(node));
        edge = node.at - half(node);
      }
      edge = 0;
      for (const node of row) {
        node.at = Math.max(node.at, edge + half(node));
        edge = node.at + half(node);
      }
    }
  }
}

function diagram() {
  const { stages, seeds } = DATA.recipe, said = h('div', { id: 'stage' });
  const svg = s('svg', { role: 'group', 'aria-label': 'what came from what' });
  const scroll = h('div', { class: 'scroll diagram' }, svg);
  const box = 22 + Math.max(...stages.map(({ name, kind }) =>
    Math.max(7.1 * name.length, 6.3 * (kind.length + 2))));
  let chosen = null, seen = 0;

  function draw() {
    const width = seen = scroll.clientWidth;
    if (!width) return;
    // From left to right where there is room, else from top to bottom.
    const deep = layered(stages, Infinity);
    const flat = deep.rows.length * (box + BOX.along) - BOX.along <= width;
    const size = flat ? BOX.height : box, length = flat ? box : BOX.height;
    const wide = ({ rows }) => Math.max(...rows.map((row) => sum(row.map((node) =>
      BOX.gap + (node.stage ? size : BOX.bend)))));
    let found = deep;
    for (let most = stages.length; !flat && wide(found) > width && most > 0; most--)
      found = layered(stages, most);
    const { rows, arrows } = found, needs = wide(found);
    const extent = Math.max(needs, flat ? 0 : Math.min(width, 1.5 * needs));
    place(rows, size, extent);
    const step = length + (flat ? Math.min(70,
      (width - rows.length * box) / Math.max(1, rows.length - 1)) : 34);
    const far = (rows.length - 1) * step + length;
    const point = (along, across) => flat ? [along, across] : [across, along];
    const [w, height] = point(far, extent);
    svg.setAttribute('viewBox', `0 0 ${w} ${height}`);
    svg.style.cssText = `width:${w}px;height:${height}px`;
    svg.replaceChildren(...arrows.map((arrow) => arrowNode(arrow, point, step, length, size)),
      ...rows.flat().filter((node) => node.stage).map(({ stage, row, at }) => {
        const [x, y] = point(row * step, at - size / 2);
        return boxNode(stage, x, y, box, () => {
          choose(stage.name);
          toRun(stage.name);
        });
      }));
    choose(chosen);
  }
  function choose(name) {
    chosen = name;
    for (const node of svg.children) {
      const { stage, from, to } = node.dataset;
      node.classList.toggle('chosen', name != null && [stage, from, to].includes(name));
    }
    const stage = stages.find((x) => x.name === name);
    said.replaceChildren(...(stage ? [
      h('b', {}, name), ` ${stage.what}. `,
      h('span', { class: 'soft' }, seeds.map((seed) => seeds.length > 1
        ? `${seed.name}: ${seed.state[name]}. ` : `${seed.state[name]}. `),
      runOf(name) == null && 'It has no curves.')]
      : [h('span', { class: 'soft' }, 'Click a stage to go to its run.')]));
  }
  new ResizeObserver(() => {
    if (scroll.clientWidth !== seen) draw();
  }).observe(scroll);
  const used = new Set(stages.flatMap(({ from }) => from.map(([, how]) => how)));
  const counts = Object.keys(SIGNS).map((state) =>
    [state, stages.filter(({ name }) => stateOf(name) === state).length]);
  return [
    h('p', {}, counts.filter(([, count]) => count).map(([state, count]) =>
      `${count} ${state}`).join(', '), '.'),
    scroll, said,
    h('div', { class: 'row soft legend' },
      Object.keys(GIVES).filter((how) => used.has(how)).map((how) => h('span', {},
        s('svg', { viewBox: '0 0 34 8' },
          s('path', { class: `arrow ${how}`, d: 'M0 4H34' })), `${how}: ${GIVES[how]}`)),
      Object.entries(SIGNS).map(([state, sign]) => h('span', {},
        sign || h('i', { class: 'unbegun' }), ` ${state}`)))];
}

function boxNode(stage, x, y, width, onclick) {
  const state = stateOf(stage.name), kind = KINDS.indexOf(stage.kind);
  return s('g', {
    'class': `stage ${state.replace(' ', '-')}`, 'data-stage': stage.name,
    'role': 'button', 'tabindex': 0, 'transform': `translate(${x} ${y})`,
    'aria-label': `${stage.name}: ${stage.what}; ${state}`, onclick,
    onkeydown(event) {
      if (['Enter', ' '].includes(event.key)) event.preventDefault(), onclick();
    } },
    s('title', {}, `${stage.what}; ${state}`),
    s('rect', { width, height: BOX.height, rx: 6 }),
    s('rect', { class: 'kind', width: 4, height: BOX.height - 12, x: 5, y: 6, rx: 2,
      style: `--kind:${colour(kind < 0 ? 6 : kind)}` }),
    s('text', { class: 'name', x: 15, y: 17 }, stage.name),
    s('text', { x: 15, y: 32 }, `${SIGNS[state]} ${stage.kind}`.trim()));
}

/** Along its bends, from one box's far side to the near side of another. */
function arrowNode({ path, how, from, to }, point, step, length, size) {
  const port = (node, other, side) => {
    const all = [...node[side]].sort((a, b) => a.at - b.at);
    const gap = Math.min(9, (size - 12) / all.length);
    return node.at + (all.indexOf(other) - (all.length - 1) / 2) * gap;
  };
  const first = path[0], last = path.at(-1);
  const tip = last.row * step, way = [];
  path.slice(1).forEach((node, i) => {
    const old = path[i];
    way.push(
      [old.row * step + length, old === first ? port(old, node, 'after') : old.at],
      [node.row * step, node === last ? port(node, old, 'before') : node.at]);
  });
  way[way.length - 1][0] -= 7;
  const across = way.at(-1)[1];
  const text = ([along, at]) => point(along, at).map((x) => x.toFixed(1)).join(' ');
  let d = `M${text(way[0])}`;
  for (let i = 1; i < way.length; i++) {
    const [a, b] = [way[i - 1], way[i]], middle = (a[0] + b[0]) / 2;
    d += i % 2 ? `C${text([middle, a[1]])} ${text([middle, b[1]])} ${text(b)}`
      : `L${text(b)}`;
  }
  const head = [[tip, across], [tip - 8, across - 4], [tip - 8, across + 4]];
  return s('g', { 'data-from': from, 'data-to': to },
    s('title', {}, `${to} ${GIVES[how]}: ${from}`),
    s('path', { class: `arrow ${how}`, d }),
    s('path', { class: `head ${how}`, d: `M${head.map(text).join('L')}Z` }));
}

/** The first run of a stage among the seeds; undefined without one. */
function runOf(name) {
  return DATA.recipe.seeds.map((seed) => seed.runs[name]).find((x) => x != null);
}

/** Marks the run of a stage below, and shows its completions if there are any. */
function toRun(name) {
  const run = runOf(name), select = document.querySelector('#run');
  for (const row of document.querySelectorAll('#table tr.chosen'))
    row.classList.remove('chosen');
  if (run == null) return;
  if (select && groupsOf(run).length) {
    select.value = run;
    select.dispatchEvent(new Event('change'));
  }
  const row = document.querySelector(`#table tr[data-run="${run}"]`);
  row?.classList.add('chosen');
  row?.scrollIntoView({ block: 'center' });
}

// The table.

function stages() {
  const { seeds, parts } = DATA.recipe;
  const columns = [
    { head: 'accuracy', of: (row) => row.accuracy, show: percent },
    { head: 'reasons', of: (row) => row.reasoning, show: percent },
    { head: 'length, tokens', of: (row) => row.length, show: number, best: false },
    ...parts.map(({ name, head, less }) => ({
      head, title: name, of: (row) => row.parts[name], show: decimals, less })),
  ];
  const rows = DATA.recipe.stages.map((stage) => ({
    stage, found: seeds.map((seed) => seed.table[stage.name]).filter(Boolean) }));
  const there = rows.filter(({ found }) => found.length);
  const missing = rows.filter(({ stage, found }) => stage.policy && !found.length);
  const waiting = missing.length > 0 && h('p', { class: 'soft' },
    'Not compared yet: ', missing.map(({ stage }) => stage.name).join(', '), '.');
  if (!there.length)
    return [h('p', { class: 'soft' }, 'No stage has been compared with others yet.'), waiting];
  for (const column of columns) {
    const values = known(there.map(({ found }) => mean(found.map(column.of))));
    const best = (column.less ? Math.min : Math.max)(...values);
    column.bold = values.length && column.best !== false ? column.show(best) : null;
  }
  const cell = (column, found) => {
    const values = known(found.map(column.of)), value = mean(values);
    const text = column.show(value);
    const ends = values.length > 1 ? [Math.min(...values), Math.max(...values)]
      : column.head === 'accuracy' && found.length === 1
        ? found[0].accuracy_interval : null;
    const edge = column.show === percent ? (x) => (100 * x).toFixed(1) : column.show;
    return h('td', { class: 'number' }, text === column.bold ? h('b', {}, text) : text,
      ends && h('small', {}, `  ${ends.map(edge).join('–')}`));
  };
  return [
    h('div', { class: 'scroll' }, h('table', { id: 'compared' },
      h('thead', {}, h('tr', {}, h('th'), columns.map(({ head, title }) =>
        h('th', { class: 'number', title }, head)))),
      h('tbody', {}, there.map(({ stage, found }) => h('tr', {},
        h('td', {}, h('b', {}, stage.name), h('small', {}, `  ${stage.what}`),
          seeds.length > 1 && h('small', {}, `, ${found.length} of ${plural(seeds.length, 'seed')}`)),
        columns.map((column) => cell(column, found))))))),
    h('p', { class: 'soft' }, h('small', {}, 'On the problems of the recipe’s table; '
      + 'runs below are evaluated on their own. ', seeds.length > 1
      ? 'Means over seeds; small: the range over them. With one seed, '
      : 'Means over completions; small: ',
    '95% interval over problems (bootstrap). Bold: the greatest of a column, or the '
      + 'least of a part whose weight is negative; no length is the best.')),
    waiting];
}

// The answers.

/** A problem's verdicts: 'right', 'wrong' or 'unscored', stage by stage. */
function judgedBy(answer, n) {
  const right = answer.right[n];
  return right == null ? 'unscored' : right >= 1 ? 'right' : 'wrong';
}

/**
 * How well a problem shows what the stages learnt: 3 from wrong and direct
 * through reasoning that errs to reasoned and right, 2 without the error, 1 for
 * any other difference; and less, by less than 1, the more often it turns.
 */
function telltale(all, n) {
  const is = all.map((x) => [judgedBy(x, n), x.reasons[n]]);
  const next = (from, right, reasons) => is.findIndex(([a, b], i) =>
    i >= from && a === right && b === reasons);
  const turns = is.slice(1).filter(([right], i) => right !== is[i][0]).length;
  if (!turns) return 0;
  const direct = next(0, 'wrong', 0);
  const errs = direct < 0 ? -1 : next(direct + 1, 'wrong', 1);
  const story = errs >= 0 && next(errs + 1, 'right', 1) >= 0 ? 3
    : direct >= 0 && next(direct + 1, 'right', 1) >= 0 ? 2 : 1;
  return story - (turns - 1) / is.length;
}

function answers() {
  const { stages, seeds } = DATA.recipe;
  const some = seeds.filter((seed) => seed.problems.length);
  if (!some.length) {
    return [h('p', { class: 'soft' },
      'No answers yet: a stage is asked when it is done, if the recipe has a table.')];
  }
  const signs = { right: '✓', wrong: '✗', unscored: '?' };
  const suggested = h('div', { class: 'problems' }), body = h('div');
  let seed = some[0], n = 0, order = [];
  const choice = h('select', { id: 'problem', 'aria-label': 'problem',
    onchange() { show(+this.value); } });
  const walk = (by, text, label) => h('button', { type: 'button', 'aria-label': label,
    onclick() { show((n + by + seed.problems.length) % seed.problems.length); } }, text);
  const asked = () => stages.filter(({ name }) => seed.answers[name]);

  function choose(found) {
    seed = found;
    const all = asked().map(({ name }) => seed.answers[name]);
    const story = seed.problems.map((_, n) => telltale(all, n));
    order = seed.problems.map((_, n) => n).filter((n) => story[n])
      .sort((a, b) => story[b] - story[a] || a - b).slice(0, 8);
    suggested.replaceChildren(...order.map((n) => h('button', {
      'type': 'button', 'dir': 'auto', 'data-n': n, 'title': seed.problems[n][0],
      onclick() { show(n); } }, lastLine(seed.problems[n][0]))));
    choice.replaceChildren(...seed.problems.map(([prompt], n) => h('option', { value: n },
      `${n + 1} ${all.map((x) => signs[judgedBy(x, n)]).join('')} ${lastLine(prompt)}`)));
    show(order[0] ?? 0);
  }
  function show(at) {
    n = at;
    choice.value = n;
    for (const button of suggested.children)
      button.setAttribute('aria-pressed', String(+button.dataset.n === n));
    const [prompt, answer] = seed.problems[n];
    body.replaceChildren(
      h('div', { class: 'prompt', dir: 'auto' }, h('b', {}, prompt),
        answer && h('span', { class: 'soft' }, `\nThe answer is ${answer}.`)),
      ...asked().map((stage) => {
        const found = seed.answers[stage.name], judged = judgedBy(found, n);
        return h('div', { 'class': 'problem said-by', 'data-stage': stage.name },
          h('div', {}, h('b', {}, stage.name), ' ',
            h('span', { class: { right: 'good', wrong: 'bad' }[judged] ?? 'soft' },
              `${signs[judged]} ${judged === 'unscored' ? 'not scored' : judged}`),
            h('small', {}, stage.what),
            h('small', {}, plural(found.length[n] ?? 0, 'token'))),
          h('div', {}, shownText(DATA.recipe, found.text[n], judged, true),
            found.cut[n] === 1 && h('div', { class: 'cut' }, CUT)));
      }));
  }
  choose(seed);
  return [
    h('p', { class: 'soft' }, 'The same held-out problems, the first completion of each. ',
      order.length > 0 && 'Problems on which the stages differ:'),
    suggested,
    h('div', { class: 'row' },
      walk(-1, '←', 'problem before'), choice, walk(1, '→', 'next problem'),
      some.length > 1 && h('label', {}, 'seed ', h('select', {
        id: 'answers-seed', onchange() { choose(some[+this.value]); } },
      some.map(({ name }, i) => h('option', { value: i }, name))))),
    body];
}

// Reflection.

function reflections() {
  const some = DATA.groups.map((group, g) => ({ name: group.name, g,
    runs: group.runs.map((i) => DATA.runs[i]).filter((run) => run.completions.text.length) }))
    .filter(({ runs }) => runs.length);
  if (!some.length) return [h('p', { class: 'soft' }, 'No completions of RL yet.')];
  let begin = 0;
  const parts = some.map(({ name, g, runs }) => {
    const steps = Math.max(...runs.flatMap((run) =>
      [run.metrics.step.at(-1) ?? 0, run.completions.groups.at(-1)[0]]));
    const part = { name, g, runs, begin, end: begin += steps };
    return part;
  });
  const lines = () => parts.map(({ name, g, runs, begin }) => {
    const found = runs.map((run) => spoken(run.completions, ''));
    // The window is in steps, and only some steps are logged.
    const { x } = found[0], apart = x.length > 1 ? (x.at(-1) - x[0]) / (x.length - 1) : 1;
    return { name, colour: colour(g), dash: '', ...combine(
      found.map(({ x, y }) => ({ x: x.map((step) => begin + step), y })),
      Math.max(1, Math.round(view.smooth / apart))) };
  });
  const figure = chart('Phrases per completion', '', lines, {
    label: 'RL step', height: 200, borders: parts.map(({ begin, name }) => [begin, name]),
    pick(x) {
      const { begin, runs } = parts.find(({ begin, end }) => x > begin && x <= end) ?? parts[0];
      searchFor({ said: '*', from: x - begin, to: x - begin,
        run: DATA.runs.indexOf(runs[0]) });
    } });
  return [
    h('p', { class: 'soft' }, 'Counted in the reasoning of the logged completions, the '
      + 'stages with RL one after the other; click for examples of a step. A stage may '
      + 'start from an earlier one than that on its left.'),
    figure];
}
