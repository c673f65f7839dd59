// The other sections of the page, and its start.

let DATA = null; // What workdirs.py has read.

/** What went wrong, in words; for each run and alarm the first time it did. */
function alarms() {
  const found = DATA.runs.flatMap((run) =>
    [...Map.groupBy(run.alarms, (alarm) => alarm.name).values()].map((all) =>
      [run, all]));
  const quiet = DATA.runs.filter((run) => run.watched && !run.alarms.length);
  const unwatched = DATA.runs.filter((run) => !run.watched && !run.alarms.length);
  const names = (runs) => runs.length === DATA.runs.length
    ? '' : ` in ${runs.map((run) => run.name).join(', ')}`;
  return [
    found.map(([run, all]) => h('div', { class: 'alarm' },
      h('p', {}, h('b', {}, all[0].name),
        h('span', { class: 'soft' }, ` ${run.name}, ${moment(all[0].step)}`,
          all.length > 1 && ` and ${plural(all.length - 1, 'time')} more, last at `
            + moment(all[all.length - 1].step),
          `: ${number(all[0].value)}, threshold ${number(all[0].threshold)}`,
          `; action: ${all[0].action}`)),
      h('p', {}, all[0].sentence))),
    quiet.length > 0 && h('p', {}, h('span', { class: 'good' }, '✓ '),
      `No alarm${names(quiet)}.`),
    unwatched.length > 0 && h('p', { class: 'soft' },
      `No alarms${names(unwatched)}: nothing was watched for.`),
    DATA.runs.map((run) => Object.entries(run.damaged).map(([file, count]) =>
      h('p', { class: 'soft' },
        `${run.name}: ${plural(count, 'line')} of ${file} could not be read.`))),
  ];
}

function moment(step) {
  return step > 0 ? `step ${step}` : 'pre-training';
}

function runs() {
  const heads = ['run', 'seed', 'steps', 'accuracy, held out', 'reward',
    'length, tokens', 'reasons', 'time'];
  const change = (summary, name, show) => summary && `${name}_after` in summary
    ? [show(summary[`${name}_before`]), ' → ', h('b', {}, show(summary[`${name}_after`]))]
    : '–';
  const interval = (summary) => {
    const found = summary?.accuracy_interval_after;
    return found && h('small', {},
      `  ${found.map((x) => (100 * x).toFixed(1)).join('–')}`);
  };
  const row = (run, g) => {
    const { summary, metrics } = run;
    const step = metrics.step[metrics.step.length - 1] ?? 0;
    const latest = (name) => mean((metrics.values[name] ?? []).slice(-10));
    const cell = (name, metric, show) => summary ? change(summary, name, show)
      : latest(metric) == null ? '–'
        : [show(latest(metric)), h('small', {}, ' in training')];
    const elapsed = metrics.values['time/elapsed'];
    return h('tr', { 'data-run': DATA.runs.indexOf(run) },
      h('td', {}, swatch(colour(g)), run.name),
      h('td', { class: 'number' }, run.seed ?? '–'),
      h('td', { class: 'number' }, summary ? step
        : `${step} of ${run.steps ?? '?'}`),
      h('td', { class: 'number' }, cell('accuracy', `reward/${run.right}`, percent),
        interval(summary)),
      h('td', { class: 'number' }, cell('reward', 'reward/mean', decimals)),
      h('td', { class: 'number' }, cell('length', 'rollout/length', number)),
      h('td', { class: 'number' }, summary ? change(summary, 'reasoning', percent) : '–'),
      h('td', { class: 'number' },
        duration(summary?.seconds ?? elapsed?.[elapsed.length - 1])));
  };
  const over = (group, g) => {
    const some = group.runs.map((i) => DATA.runs[i].summary).filter(Boolean);
    if (group.runs.length < 2 || some.length < 2) return null;
    const means = Object.fromEntries(Object.keys(some[0]).map((name) =>
      [name, mean(some.map((summary) => summary[name]))]));
    const found = some.map((summary) => summary.accuracy_after);
    const ends = [Math.min(...found), Math.max(...found)];
    return h('tr', {},
      h('td', {}, swatch(colour(g)), h('b', {}, group.name),
        h('small', {}, `  mean of ${some.length} seeds`)),
      h('td'), h('td'),
      h('td', { class: 'number' }, change(means, 'accuracy', percent), interval(
        { accuracy_interval_after: ends })),
      h('td', { class: 'number' }, change(means, 'reward', decimals)),
      h('td', { class: 'number' }, change(means, 'length', number)),
      h('td', { class: 'number' }, change(means, 'reasoning', percent)),
      h('td', { class: 'number' }, duration(means.seconds)));
  };
  const date = new Date(1000 * DATA.written);
  return [
    h('div', { class: 'scroll' }, h('table', { id: 'table' },
      h('thead', {}, h('tr', {}, heads.map((head, i) =>
        h('th', { class: i ? 'number' : '' }, head)))),
      h('tbody', {}, DATA.groups.map((group, g) =>
        [group.runs.map((i) => row(DATA.runs[i], g)), over(group, g)])))),
    h('p', { class: 'soft' }, h('small', {},
      'Before → after RL; small: 95% interval over problems (bootstrap), of a mean '
      + 'the range over seeds. Written ', h('time', {}, date.toLocaleString()), '.')),
  ];
}

/** How often the reasoning looks back at itself, and examples on a click. */
function words() {
  const some = DATA.runs.filter((run) => run.completions.text.length);
  if (!some.length) return [h('p', { class: 'soft' }, 'No completions yet.')];
  const totals = new Map();
  for (const { completions: c, phrases } of some) {
    for (const found of Object.values(c.said)) {
      for (const i of found) {
        const name = phrases[i], old = totals.get(name) ?? { times: 0, texts: 0 };
        totals.set(name, { times: old.times + 1, texts: old.texts });
      }
      for (const i of new Set(found)) totals.get(phrases[i]).texts++;
    }
  }
  const count = sum(some.map((run) => run.completions.text.length));
  if (!totals.size) {
    return [h('p', {}, `None of ${plural(count, 'logged completion')} says any of: `,
      h('span', { class: 'soft' }, some[0].phrases.join(', ')), '.')];
  }
  let phrase = '';
  const lines = () => DATA.groups.flatMap((group, g) => {
    const rows = group.runs.map((i) => DATA.runs[i].completions)
      .filter((c) => c.text.length);
    return rows.length ? [{ name: group.name, colour: colour(g), dash: dash(g),
      ...combine(rows.map((c, i) => spoken(c,
        phrase && DATA.runs[group.runs[i]].phrases.indexOf(phrase)))) }] : [];
  });
  const title = h('span');
  const curve = chart('', '', lines, {
    label: 'step', height: 150,
    pick: (step) => searchFor({ said: phrase || '*', from: step, to: step }) });
  curve.querySelector('figcaption').replaceChildren(title);
  const choose = (name) => {
    phrase = name;
    title.textContent = `${name ? `“${name}”` : 'Phrases'} per completion`;
    for (const button of table.querySelectorAll('button[data-phrase]'))
      button.setAttribute('aria-pressed', String(button.dataset.phrase === name));
    drawAgain();
  };
  const line = (name, { times, texts }) => h('tr', {},
    h('td', {}, h('button', {
      type: 'button', 'data-phrase': name, onclick() { choose(name); } },
      name || 'all of them')),
    h('td', { class: 'number' }, times.toLocaleString('en')),
    h('td', { class: 'number' }, percent(texts / count)),
    h('td', {}, h('button', {
      type: 'button', class: 'link',
      onclick() { searchFor({ said: name || '*' }); } }, 'examples')));
  const all = {
    times: sum([...totals.values()].map((x) => x.times)),
    texts: sum(some.map((run) => Object.keys(run.completions.said).length)) };
  const order = [...totals].sort((a, b) => b[1].times - a[1].times);
  const table = h('table', {},
    h('thead', {}, h('tr', {}, ['', 'times', 'of completions', ''].map(
      (head, i) => h('th', { class: i % 3 ? 'number' : '' }, head)))),
    h('tbody', {}, line('', all), order.map(([name, x]) => line(name, x))));
  choose('');
  return [
    h('p', { class: 'soft' }, 'Counted in the reasoning of the logged completions; '
      + 'click the curve for examples of a step.'),
    h('div', { class: 'pair' }, curve, h('div', { class: 'scroll' }, table))];
}

/** Mean count of a phrase (or of all, for '') a completion, step by step. */
function spoken(c, phrase) {
  const x = [], y = [];
  for (const [step, groups] of Map.groupBy(c.groups, ([step]) => step)) {
    let times = 0, rows = 0;
    for (const [, , first, count] of groups) {
      rows += count;
      for (let i = first; i < first + count; i++)
        times += (c.said[i] ?? []).filter((p) => phrase === '' || p === phrase).length;
    }
    x.push(step);
    y.push(times / rows);
  }
  return { x, y };
}

const CHANGES = [
  ['became right', 0, 1], ['became wrong', 1, 0], ['stayed wrong', 0, 0],
  ['stayed right', 1, 1]];

/** Problem by problem the first completion, before and after RL. */
function heldout() {
  const some = DATA.runs.map((run, i) => i).filter((i) => DATA.runs[i].heldout);
  if (!some.length) return [h('p', { class: 'soft' }, 'No evaluation yet.')];
  const size = 12, body = h('div');
  let run = some[0], change = 0;
  function draw() {
    const { before, after, problems } = DATA.runs[run].heldout;
    const first = before ?? after, is = (e, n) => +(e.right[n] >= 1);
    const all = first.text.map((_, n) => n);
    const sets = before && after ? CHANGES.map(([, a, b]) =>
      all.filter((n) => is(before, n) === a && is(after, n) === b)) : [all];
    const rows = sets[change] ?? [], list = h('div');
    const more = h('button', { type: 'button', onclick: add }, 'more');
    const half = (when, e, n) => e && h('div', {}, h('small', {}, when), shownText(
      DATA.runs[run], e.text[n], e.right[n] >= 1 ? 'right' : 'wrong'),
      e.cut[n] === 1 && h('div', { class: 'cut' }, CUT));
    function add() {
      const from = list.children.length;
      list.append(...rows.slice(from, from + size).map((n) => {
        const [prompt, answer] = problems[n] ?? [`Problem ${n + 1}`, ''];
        return h('div', { class: 'problem' },
          h('div', { class: 'prompt', dir: 'auto' }, h('b', {}, prompt),
            answer && h('span', { class: 'soft' }, `\nThe answer is ${answer}.`)),
          h('div', { class: 'pair' },
            half('before RL', before, n), half('after RL', after, n)));
      }));
      more.hidden = list.children.length >= rows.length;
    }
    add();
    body.replaceChildren(
      h('div', { class: 'row' }, before && after ? CHANGES.map(([name], i) =>
        h('button', {
          type: 'button', 'aria-pressed': String(i === change),
          onclick() { change = i; draw(); } }, `${name} `,
          h('b', {}, sets[i].length.toLocaleString('en')))) : plural(all.length, 'problem')),
      rows.length ? list : h('p', { class: 'soft' }, 'None.'), more);
  }
  draw();
  return [
    some.length > 1 && h('div', { class: 'row' }, h('label', {}, 'run '), h('select', {
      id: 'heldout-run', 'aria-label': 'run of the evaluation', onchange() {
        run = +this.value;
        draw();
      } }, some.map((i) => h('option', { value: i }, DATA.runs[i].name)))),
    body];
}

/** The knobs that differ between runs, or with one run or on demand all. */
function configs() {
  const names = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.config)))];
  if (!names.length) return [h('p', { class: 'soft' }, 'No config.json.')];
  const value = (run, name) => name in run.config
    ? JSON.stringify(run.config[name]).replace(/^"(.*)"$/, '$1') : null;
  const differ = names.filter((name) =>
    new Set(DATA.runs.map((run) => value(run, name))).size > 1);
  const table = (names) => h('div', { class: 'scroll' }, h('table', {},
    h('thead', {}, h('tr', {}, h('th', {}, 'knob'),
      DATA.runs.map((run) => h('th', {}, run.name)))),
    h('tbody', {}, names.map((name) => h('tr', {},
      h('td', { class: 'mono' }, name),
      DATA.runs.map((run) => h('td', { class: 'mono' },
        value(run, name) ?? h('span', { class: 'soft' }, 'not there'))))))));
  const many = DATA.runs.length > 1;
  return [
    many && (differ.length ? table(differ)
      : h('p', { class: 'soft' }, 'The configs are the same.')),
    h('details', { open: false, ontoggle() {
      if (this.children.length === 1) this.append(table(names));
    } }, h('summary', {}, `All ${plural(names.length, 'knob')}`)),
  ];
}

function failures() {
  return DATA.runs.filter((run) => run.failures.counts.length).map((run) => [
    h('p', {}, h('b', {}, run.name), ': ', run.failures.counts.map(
      ([part, kind, count]) => `${part} ${kind} ${count.toLocaleString('en')}`)
      .join(', ')),
    h('details', {}, h('summary', {},
      `the last ${run.failures.last.length.toLocaleString('en')}`),
    run.failures.last.map((row) => h('div', { class: 'problem' },
      h('p', { class: 'soft' }, `step ${row.step}, ${row.part} ${row.kind}: ${row.detail ?? ''}`),
      h('div', { class: 'text', dir: 'auto' }, `${row.text ?? ''}`))))]);
}

function theme() {
  const names = ['system', 'light', 'dark'], root = document.documentElement;
  const button = document.getElementById('theme');
  const show = (name) => {
    root.dataset.theme = name;
    button.textContent = { system: '◐', light: '☀', dark: '☾' }[name] + ` ${name}`;
  };
  let name = 'system';
  try {
    name = localStorage.getItem('grpo_jax.theme') ?? name;
  } catch { /* Some browsers keep nothing for files. */ }
  show(names.includes(name) ? name : 'system');
  button.addEventListener('click', () => {
    const next = names[(names.indexOf(root.dataset.theme) + 1) % names.length];
    show(next);
    try {
      localStorage.setItem('grpo_jax.theme', next);
    } catch { /* As above. */ }
  });
}

async function unpack() {
  const node = document.getElementById('data');
  const text = atob(node.textContent), bytes = new Uint8Array(text.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = text.charCodeAt(i);
  node.remove();
  const stream = new Blob([bytes]).stream()
    .pipeThrough(new DecompressionStream('gzip'));
  return new Response(stream).json();
}

const breath = () => new Promise((resolve) => setTimeout(resolve));

async function start() {
  theme();
  await breath(); // The header is seen before the data is read.
  DATA = await unpack();
  const names = (DATA.recipe?.seeds ?? DATA.groups).map((x) => x.name).join(', ');
  document.title = `${names} · grpo_jax`;
  const main = document.querySelector('main');
  const failed = DATA.runs.some((run) => run.failures.counts.length);
  for (const [id, title, draw] of [
    ...(DATA.recipe ? recipeSections() : []),
    ['runs', 'Runs', () => [alarms(), runs()]],
    ['curves', 'Curves', curves],
    ['completions', 'Completions', completions],
    ['words', 'Reflection', words],
    ['heldout', 'Held-out problems', heldout],
    ['configs', 'Configs', configs],
    ...(failed ? [['failures', 'Failures of host rewards', failures]] : []),
  ]) {
    document.querySelector('nav').append(h('a', { href: `#${id}` }, title));
    const section = h('section', { id }, h('h2', {}, title));
    main.append(section);
    fill(section, {}, draw());
    // The next section waits, so that this one is seen first.
    await breath();
    document.body.dataset.seen ??= Math.round(performance.now());
  }
  drawAgain();
  // The stages of a recipe are drawn at their width, which a frame tells.
  await new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
  document.body.dataset.ready = Math.round(performance.now());
}

start();
