// Curves over steps or seconds: a line a group of runs, a band over its seeds.

const view = { smooth: 10, axis: 'step', hidden: new Set() };

/**
 * What is drawn: title, metric, and how. A metric that no run has is left out.
 * `share` is of 1, `log` has a logarithmic axis.
 */
function charts() {
  const parts = [...new Set(DATA.runs.flatMap((run) => run.parts))];
  const right = new Set(DATA.runs.map((run) => run.right));
  const others = parts.filter((name) => !right.has(name));
  return [
    ['Reward', 'reward/mean'],
    ...[...right].map((name) => 
      ['Accuracy in training', `reward/${name}`, { share: true }]),
    ['Held-out accuracy', 'eval/accuracy', { share: true }],
    ...others.map((name) => [`Reward part: ${name}`, `reward/${name}`]),
    ['Length, tokens', 'rollout/length'],
    ['Cut at the limit', 'rollout/truncated', { share: true }],
    ['Entropy, nats', 'rollout/entropy'],
    ['Groups of equal rewards', 'groups/degenerate', { share: true }],
    ['KL to the reference, nats', 'kl/reference'],
    ['Clipped tokens', 'policy/clip_fraction', { share: true }],
    ['Sampler drift, nats', 'rollout/logp_drift', { log: true }],
    ['Gradient norm', 'grad_norm'],
    ['Loss', 'loss'],
    ['Seconds a step', 'time/step'],
    ['Tokens a second', 'time/tokens_per_second'],
  ].filter(([, name]) => DATA.runs.some((run) => run.metrics.values[name]));
}

const colour = (group) => `var(--c${group % 8})`;
const dash = (group) => ['', '7 3', '2 3'][Math.floor(group / 8) % 3];

/** Series of a metric, one for each group that is shown. */
function series(metric) {
  const found = [];
  DATA.groups.forEach((group, g) => {
    const runs = group.runs.map((r) => DATA.runs[r].metrics);
    const rows = runs.filter((m) => m.values[metric]);
    if (view.hidden.has(g) || !rows.length) return;
    found.push({
      name: group.name,
      colour: colour(g),
      dash: dash(g),
      ...combine(rows.map((m) => ({
        x: view.axis === 'step' ? m.step : m.values['time/elapsed'] ?? m.step,
        y: m.values[metric],
      }))),
    });
  });
  return found;
}

/**
 * Running means of some runs, their mean and its standard error, step by step
 * as far as the shortest run goes: beyond it the mean would jump.
 */
function combine(runs, window = view.smooth) {
  const raw = runs.map(({ x, y }) => ({ x, y }));
  const rows = runs.map(({ y }) => smooth(y, window));
  const length = Math.min(...rows.map((row) => row.length));
  const x = [], y = [], low = [], high = [];
  for (let i = 0; i < length; i++) {
    const values = known(rows.map((row) => row[i]));
    const centre = mean(values), n = values.length;
    const spread = sum(values.map((v) => (v - centre) ** 2));
    const error = n > 1 ? Math.sqrt(spread / (n - 1) / n) : 0;
    x.push(mean(runs.map((run) => run.x[i])));
    y.push(centre);
    low.push(centre == null ? null : centre - error);
    high.push(centre == null ? null : centre + error);
  }
  return { raw, x, y, low, high, seeds: runs.length };
}

const drawn = new Set(); // Charts that are on the page, to be drawn again.

/**
 * A figure that draws itself at the width it has.
 *
 * `lines()` gives its series; options: share, log, label of the x axis,
 * height, stack (areas one on the other), borders ([x, name], where something
 * begins), and pick(x), called on a click.
 */
function chart(title, name, lines, options = {}) {
  const svg = s('svg', { role: 'img', 'aria-label': title });
  if (options.pick) svg.classList.add('pick');
  const caption = [h('span', {}, title), h('code', {}, name)];
  const figure = h('figure', {}, h('figcaption', {}, caption), svg);
  const self = { figure, draw, width: 0 };
  let plot = null;

  function draw() {
    const width = svg.clientWidth;
    self.width = width;
    if (!width) return;
    plot = paint(svg, lines(), width, options.height ?? 140, options);
  }
  function at(event) {
    if (!plot) return null;
    const x = event.clientX - svg.getBoundingClientRect().left;
    return plot.nearest(x);
  }
  svg.addEventListener('pointermove', (event) => {
    const x = at(event);
    if (x != null) plot.show(x, event);
  });
  svg.addEventListener('pointerleave', () => plot?.hide());
  svg.addEventListener('click', (event) => {
    const x = at(event);
    if (x != null) options.pick?.(x);
  });
  drawn.add(self);
  widths.observe(svg);
  return figure;
}

const widths = new ResizeObserver(() => {
  for (const chart of drawn) {
    if (!chart.figure.isConnected) continue;
    if (chart.width !== chart.figure.querySelector('svg').clientWidth) chart.draw();
  }
});

function drawAgain() {
  for (const chart of drawn) {
    if (chart.figure.isConnected) chart.draw();
    else if (chart.width) drawn.delete(chart); // It was there, and is no more.
  }
}

function paint(svg, lines, width, height, options) {
  const box = { left: 42, right: width - 6, top: 8, bottom: height - 18 };
  svg.setAttribute('viewBox', `0 0 ${width} ${height}`);
  svg.style.height = `${height}px`;
  const ok = (y) => y != null && (!options.log || y > 0);
  const xs = [], ys = options.stack ? [0] : [];
  for (const line of lines) {
    for (const { x, y } of options.stack ? [line] : [line, ...line.raw]) {
      x.forEach((value, i) => {
        if (value != null && ok(y[i])) xs.push(value), ys.push(y[i]);
      });
    }
  }
  if (!xs.length) {
    svg.replaceChildren(s('text', { x: box.left, y: 40 }, 'nothing measured'));
    return null;
  }
  const borders = options.borders ?? [];
  xs.push(...borders.map(([x]) => x));
  const range = (values) => values.reduce(
    ([a, b], v) => [Math.min(a, v), Math.max(b, v)], [Infinity, -Infinity]);
  const to = options.log ? Math.log10 : (y) => y;
  let [x0, x1] = range(xs), [y0, y1] = range(ys).map(to);
  if (x0 === x1) x0 -= 0.5, x1 += 0.5;
  if (options.share) y0 = Math.min(y0, 0), y1 = Math.max(y1, 0.02);
  if (y1 - y0 < 1e-9 * Math.max(1, Math.abs(y1))) {
    const pad = options.log ? 0.5 : Math.abs(y1) / 10 || 0.5;
    y0 -= pad, y1 += pad;
  }
  const X = (x) => box.left + (x - x0) / (x1 - x0) * (box.right - box.left);
  const Y = (y) => box.bottom - (to(y) - y0) / (y1 - y0) * (box.bottom - box.top);

  const nodes = [], lanes = []; // Where the last name in each lane ends.
  for (const [x, name] of borders) {
    const size = 6 * name.length + 10;
    const left = Math.max(0, Math.min(X(x), width - size));
    const free = lanes.findIndex((end) => end <= left);
    const lane = free < 0 ? lanes.length : free;
    lanes[lane] = left + size;
    nodes.push(
      s('line', { class: 'border', x1: X(x), x2: X(x), y1: 3 + 13 * lane, y2: box.bottom }),
      s('text', { class: 'border', x: left + 4, y: 12 + 13 * lane }, name));
  }
  box.top += 13 * lanes.length;
  let marks = ticks(y0, y1).map((y) => [options.log ? 10 ** y : y, y]);
  const decades = marks.filter(([, y]) => Number.isInteger(y));
  if (options.log && decades.length > 1) marks = decades;
  for (const [y] of marks) {
    const label = options.share ? percent(y, y1 < 0.1 ? 1 : 0)
      : options.log ? y.toExponential(decades.length > 1 ? 0 : 1) : short(y);
    nodes.push(
      s('line', { class: 'grid', x1: box.left, x2: box.right, y1: Y(y), y2: Y(y) }),
      s('text', { x: box.left - 6, y: Y(y) + 3.5, 'text-anchor': 'end' }, label));
  }
  const whole = view.axis === 'step' || options.label;
  for (const x of ticks(x0, x1, Math.min(6, width / 70))) {
    if (whole && !Number.isInteger(x)) continue;
    nodes.push(s('text', { x: X(x), y: height - 4, 'text-anchor': 'middle' }, short(x)));
  }

  const path = (x, y) => {
    let text = '', pen = 'M';
    thin(x, y, width).forEach(([x, y]) => {
      if (!ok(y)) return void (pen = 'M');
      text += `${pen}${X(x).toFixed(1)} ${Y(y).toFixed(1)}`;
      pen = 'L';
    });
    return text;
  };
  const area = (x, low, high) => {
    const there = x.map((_, i) => i).filter((i) => ok(low[i]) && ok(high[i]));
    const edge = (y, order) =>
      order.map((i) => `${X(x[i]).toFixed(1)} ${Y(y[i]).toFixed(1)}`).join('L');
    const back = [...there].reverse();
    return there.length ? `M${edge(high, there)}L${edge(low, back)}Z` : '';
  };
  const dots = (x, y, fill) => x.length > 1 ? []
    : x.map((x, i) => ok(y[i]) && s('circle', { cx: X(x), cy: Y(y[i]), r: 3, fill }));
  for (const line of lines) {
    if (options.stack) {
      nodes.push(s('path', {
        class: 'stack', fill: line.colour, d: area(line.x, line.low, line.y) }));
      continue;
    }
    if (line.seeds > 1) {
      nodes.push(s('path', {
        class: 'band', fill: line.colour, d: area(line.x, line.low, line.high) }));
    }
    for (const { x, y } of line.raw)
      nodes.push(s('path', { class: 'raw', stroke: line.colour, d: path(x, y) }));
    nodes.push(s('path', {
      class: 'mean', stroke: line.colour, 'stroke-dasharray': line.dash,
      d: path(line.x, line.y) }), ...dots(line.x, line.y, line.colour));
  }
  const cursor = s('line', { class: 'cursor', y1: box.top, y2: box.bottom });
  cursor.style.display = 'none';
  svg.replaceChildren(...nodes.filter(Boolean), cursor);

  const close = (line, x) => {
    let best = 0;
    line.x.forEach((value, i) => {
      if (Math.abs(value - x) < Math.abs(line.x[best] - x)) best = i;
    });
    return best;
  };
  return {
    nearest(pixel) {
      const x = x0 + (pixel - box.left) / (box.right - box.left) * (x1 - x0);
      const found = lines.filter((line) => line.x.length)
        .map((line) => line.x[close(line, x)]);
      return found.length ? found.reduce(
        (a, b) => Math.abs(b - x) < Math.abs(a - x) ? b : a) : null;
    },
    show(x, event) {
      cursor.style.display = '';
      cursor.setAttribute('x1', X(x));
      cursor.setAttribute('x2', X(x));
      const unit = whole ? options.label ?? 'step' : 'after';
      tip(event, `${unit} ${whole ? number(x) : duration(x)}`, lines.flatMap((line) => {
        const i = close(line, x);
        if (whole && line.x[i] !== x) return [];
        const value = options.stack ? line.own[i] : line.y[i];
        const error = line.seeds > 1 ? ` ± ${number(line.high[i] - line.y[i])}` : '';
        const raw = line.seeds === 1 && !options.stack
          && line.raw[0].y[i] !== value ? ` (${number(line.raw[0].y[i])})` : '';
        return [[line, `${number(value)}${error}${raw}`]];
      }));
    },
    hide() {
      cursor.style.display = 'none';
      document.getElementById('tip').hidden = true;
    },
  };
}

function short(x) {
  if (Math.abs(x) >= 1e6) return `${+(x / 1e6).toPrecision(3)}M`;
  if (Math.abs(x) >= 1e4) return `${+(x / 1e3).toPrecision(3)}k`;
  return Math.abs(x) < 1e-3 && x ? x.toExponential(0) : `${+x.toPrecision(4)}`;
}

function duration(seconds) {
  if (seconds == null) return '–';
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60);
  if (whole < 100) return `${whole} s`;
  return minutes < 100 ? `${minutes} min`
    : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** At the most two points a pixel: the least and the greatest that are there. */
function thin(x, y, width) {
  const points = x.map((value, i) => [value, y[i]]);
  const size = Math.ceil(points.length / width);
  if (size < 4) return points;
  const found = [];
  for (let i = 0; i < points.length; i += size) {
    const some = points.slice(i, i + size).filter(([, y]) => y != null);
    if (!some.length) continue;
    const order = [...some].sort((a, b) => a[1] - b[1]);
    const ends = [order[0], order[order.length - 1]];
    found.push(...ends.sort((a, b) => a[0] - b[0]));
  }
  return found;
}

function tip(event, title, rows) {
  const node = document.getElementById('tip');
  node.replaceChildren(h('span', { class: 'soft' }, title), ...rows.map(
    ([line, value]) => h('div', {},
      h('span', {}, swatch(line.colour), line.name), h('b', {}, value))));
  node.hidden = false;
  const { width, height } = node.getBoundingClientRect();
  const left = event.clientX + 14 + width > innerWidth
    ? event.clientX - 14 - width : event.clientX + 14;
  node.style.left = `${Math.max(4, left)}px`;
  node.style.top = `${Math.min(event.clientY + 12, innerHeight - height - 6)}px`;
}

function swatch(colour) {
  return h('i', { class: 'swatch', style: `background:${colour}` });
}

/** Where the seconds of a step go, as areas one on the other. */
function phases(run) {
  const { step, values } = run.metrics;
  const rest = ['step', 'elapsed', 'tokens_per_second', 'mfu', 'memory_gb'];
  const names = Object.keys(values).filter((name) =>
    name.startsWith('time/') && !rest.includes(name.slice(5)));
  if (names.length < 2) return null;
  const x = view.axis === 'step' ? step : values['time/elapsed'] ?? step;
  let below = step.map(() => 0);
  return names.map((name, i) => {
    const own = smooth(values[name], view.smooth).map((v) => v ?? 0);
    const low = below;
    below = low.map((v, j) => v + own[j]);
    return { name: name.slice(5), colour: colour(i), x, low, y: below, own, raw: [] };
  });
}

function curves() {
  const grid = h('div', { class: 'charts' });
  for (const [title, name, options] of charts())
    grid.append(chart(title, name, () => series(name), options));
  for (const group of DATA.groups) {
    const run = DATA.runs[group.runs[0]];
    if (!phases(run)) continue;
    const title = 'Seconds a step by phase';
    const figure = chart(title, run.name, () => phases(run), { stack: true });
    const legend = phases(run).map((line) =>
      h('span', {}, swatch(line.colour), line.name));
    figure.append(h('small', { class: 'row' }, legend));
    grid.append(figure);
  }

  const window = h('input', {
    type: 'range', id: 'smooth', min: 1, max: 50, value: view.smooth,
    oninput() {
      view.smooth = +this.value;
      shown.textContent = plural(view.smooth, 'step');
      drawAgain();
    } });
  const shown = h('span', {}, plural(view.smooth, 'step'));
  const axis = h('select', {
    id: 'axis',
    onchange() {
      view.axis = this.value;
      drawAgain();
    } },
    h('option', { value: 'step' }, 'RL steps'),
    h('option', { value: 'time' }, 'seconds'));
  const band = DATA.groups.some((group) => group.runs.length > 1)
    ? ' Runs that differ in their seed alone are one line; its band is the '
      + 'standard error over seeds.' : '';
  return [
    h('div', { class: 'row' },
      h('label', {}, 'running mean over ', window, ' ', shown),
      h('label', {}, 'over ', axis),
      DATA.groups.length > 1 && legend()),
    h('p', { class: 'soft' }, `Thick: running mean. Thin: single steps.${band}`),
    grid,
    allMetrics(),
  ];
}

/** Names of the groups; a click hides one, or shows it again. */
function legend() {
  return DATA.groups.map((group, g) => h('button', {
    type: 'button', 'aria-pressed': 'true',
    onclick() {
      const on = view.hidden.delete(g);
      if (!on) view.hidden.add(g);
      this.setAttribute('aria-pressed', on);
      drawAgain();
    } }, swatch(colour(g)), group.name));
}

function allMetrics() {
  const names = [...new Set(DATA.runs.flatMap(
    (run) => Object.keys(run.metrics.values)))].sort();
  const pretraining = DATA.runs.some((run) => run.pretraining.step.length);
  const grid = h('div', { class: 'charts' }), list = h('p', { class: 'soft mono' });
  const most = 12;
  function find(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const found = names.filter((name) => words.every((x) => name.includes(x)));
    list.textContent = words.length && found.length <= most ? '' : found.join('  ');
    grid.replaceChildren(...(words.length ? found.slice(0, most) : []).map(
      (name) => chart(name, '', () => series(name))));
    drawAgain();
  }
  find('');
  return h('details', { id: 'metrics' },
    h('summary', {}, `All ${plural(names.length, 'metric')}`),
    h('div', { class: 'row' }, h('input', {
      type: 'search', placeholder: 'metric, such as grad or time/',
      'aria-label': 'search metrics', oninput() { find(this.value); } })),
    list, grid, pretraining && h('div', { class: 'charts' },
      chart('Pre-training loss', 'loss', () => DATA.groups.flatMap((group, g) =>
        group.runs.map((r) => DATA.runs[r]).filter(
          (run) => run.pretraining.values.loss).map((run) => ({
          name: run.name, colour: colour(g), dash: '',
          ...combine([{
            x: run.pretraining.step, y: run.pretraining.values.loss }]),
        }))), { label: 'pre-training step' })));
}
