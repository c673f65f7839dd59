// The groups of a step, one completion in a card, the search over all of them.

/** What is looked at: a run, one of its groups, and a completion in it. */
const look = { run: 0, group: 0, row: -1, unfold: false, query: null };

const groupsOf = (run) => DATA.runs[run].completions.groups;

/** Step -> the numbers of its groups, in the order of the file. */
function bySteps(run) {
  return Map.groupBy(groupsOf(run).map((_, i) => i), (i) => groupsOf(run)[i][0]);
}

/** Problem -> the groups that answered it, in the order of training. */
function visits(run) {
  const completions = DATA.runs[run].completions;
  completions.visits ??= Map.groupBy(
    completions.groups.map((_, i) => i), (i) => completions.groups[i][1]);
  return completions.visits;
}

/** Rows of a group, the greatest advantage first, unknown ones last. */
function ranked(run, group) {
  const { groups, advantage, reward } = DATA.runs[run].completions;
  const [, , first, count] = groups[group];
  const by = (values) => (a, b) =>
    (values[b] ?? -Infinity) - (values[a] ?? -Infinity) || 0;
  return Array.from({ length: count }, (_, i) => first + i)
    .sort((a, b) => by(advantage)(a, b) || by(reward)(a, b) || a - b);
}

function verdict(run, row) {
  const score = DATA.runs[run].completions.parts[DATA.runs[run].right]?.[row];
  return score == null ? 'unscored' : score >= 1 ? 'right' : 'wrong';
}

/** [start, end) of the reasoning with its tags; null where there is none. */
function thought(text, marks) {
  const [opening, closing] = marks.think;
  const open = text.indexOf(opening);
  const inner = open < 0 ? 0 : open + opening.length;
  const close = text.indexOf(closing, open < 0 ? 0 : inner);
  if (open < 0 && close < 0) return null;
  return {
    start: open < 0 ? 0 : open,
    end: close < 0 ? text.length : close + closing.length,
    inner: [inner, close < 0 ? text.length : close],
  };
}

/** [start, end) of the answer as the reward looks for it; null without one. */
function answerSpan(text, { where, tag }) {
  if (where === 'tags') {
    const start = text.lastIndexOf(`<${tag}>`);
    const end = text.indexOf(`</${tag}>`, start);
    return start < 0 || end < 0 ? null : [start + tag.length + 2, end];
  }
  if (where === 'line') {
    const at = text.lastIndexOf(tag);
    if (at < 0) return null;
    const end = text.indexOf('\n', at);
    return [at + tag.length, end < 0 ? text.length : end];
  }
  const start = text.lastIndexOf('\\boxed{') + 7;
  if (start < 7) return null;
  for (let i = start, depth = 0; i < text.length; i++) {
    if (text[i] === '{') depth++;
    if (text[i] === '}' && depth-- === 0) return [start, i];
  }
  return null;
}

const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');

function phrasePattern(phrases) {
  const words = phrases.map((x) => x.trim().split(/\s+/).map(escaped).join('\\s+'));
  return new RegExp(`(?<!\\w)(?:${words.join('|')})(?!\\w)`, 'gi');
}

/** Ranges of a text that are shown otherwise: [start, end, class]. */
function ranges({ marks, phrases }, text, judged) {
  const found = [];
  const tags = [...marks.think];
  if (marks.answer.where === 'tags')
    tags.push(`<${marks.answer.tag}>`, `</${marks.answer.tag}>`);
  for (const tag of tags)
    for (let i = text.indexOf(tag); i >= 0; i = text.indexOf(tag, i + 1))
      found.push([i, i + tag.length, 'tag']);
  const answer = answerSpan(text, marks.answer);
  if (answer) found.push([...answer, `answer ${judged}`]);
  const [start, end] = thought(text, marks)?.inner ?? [0, text.length];
  for (const match of text.slice(start, end).matchAll(phrasePattern(phrases)))
    found.push([start + match.index, start + match.index + match[0].length, 'said']);
  if (look.query)
    for (const match of text.matchAll(look.query))
      found.push([match.index, match.index + match[0].length, 'hit']);
  return found.filter(([start, end]) => end > start);
}

/** The text from start to end as nodes, each piece with the classes it has. */
function painted(text, start, end, ranges) {
  const inside = ranges.filter(([a, b]) => b > start && a < end);
  const cuts = new Set([start, end]);
  for (const [a, b] of inside)
    for (const x of [a, b]) if (x > start && x < end) cuts.add(x);
  const points = [...cuts].sort((a, b) => a - b);
  return points.slice(1).map((to, i) => {
    const from = points[i], piece = text.slice(from, to);
    const classes = inside.filter(([a, b]) => a <= from && b >= to)
      .map(([, , name]) => name);
    if (!classes.length) return piece;
    const hit = classes.includes('hit');
    const rest = classes.filter((x) => x !== 'hit').join(' ');
    const node = hit ? h('mark', {}, piece) : piece;
    return rest ? h('span', { class: rest }, node) : node;
  });
}

/**
 * A completion: its reasoning folded, its answer and all that is beside it.
 *
 * `by` is a run, or whatever else has marks and phrases.
 */
function shownText(by, text, judged, unfold = look.unfold) {
  if (!text) return h('div', { class: 'text empty' }, '(empty)');
  const all = ranges(by, text, judged);
  const part = (start, end) => h('div', { class: 'text', dir: 'auto' },
    painted(text, start, end, all));
  const found = thought(text, by.marks);
  if (!found) return part(0, text.length);
  const inside = text.slice(...found.inner);
  const hit = all.some(([a, b, name]) =>
    name === 'hit' && a < found.end && b > found.start);
  return [
    text.slice(0, found.start).trim() && part(0, found.start),
    h('details', { class: 'thought', open: unfold || hit },
      h('summary', {}, `reasoning, ${plural(inside.trim().length, 'character')}`,
        h('span', { class: 'peek', dir: 'auto' },
          inside.trim().slice(0, 90))),
      part(found.start, found.end)),
    text.slice(found.end).trim() && part(found.end, text.length),
  ];
}

const CUT = 'cut at the limit, before it ended';

function card(run, row, rank, rows) {
  const c = DATA.runs[run].completions, judged = verdict(run, row);
  const advantage = c.advantage[row];
  const greatest = (values, least) =>
    Math.max(least, ...rows.map((i) => Math.abs(values[i] ?? 0)));
  const most = greatest(c.advantage, 1e-9);
  const half = advantage == null ? 0 : 50 * Math.abs(advantage) / most;
  const sign = advantage > 0 ? 'up' : advantage < 0 ? 'down' : '';
  const start = advantage < 0 ? 50 - half : 50;
  return h('article', {
    class: `card ${row === look.row ? 'chosen' : ''}`, 'data-row': row },
    h('div', { class: 'head' },
      h('b', {}, `${rank}`),
      h('span', { class: { right: 'good', wrong: 'bad' }[judged] ?? 'soft' },
        { right: '✓ right', wrong: '✗ wrong', unscored: '? not scored' }[judged]),
      h('small', {}, plural(c.length[row] ?? 0, 'token')),
      h('small', {}, `sample ${c.sample[row]}`)),
    h('div', { class: 'bars' },
      h('b', {}, 'advantage'),
      h('div', { class: 'bar middle' },
        h('i', { class: sign, style: `left:${start}%;width:${half}%` })),
      h('span', { class: { up: 'good', down: 'bad' }[sign] }, signed(advantage)),
      h('b', {}, 'reward'), h('div', {}),
      h('span', {}, h('b', {}, decimals(c.reward[row]))),
      Object.keys(c.parts).map((name) => {
        const value = c.parts[name][row];
        const width = 100 * Math.abs(value ?? 0) / greatest(c.parts[name], 1);
        return [
          h('span', {}, name),
          h('div', { class: 'bar' }, h('i', {
            class: value < 0 ? 'down' : 'part', style: `left:0;width:${width}%` })),
          h('span', {}, value == null ? 'not scored' : number(value))];
      })),
    shownText(DATA.runs[run], c.text[row], judged),
    c.cut[row] === 1 && h('div', { class: 'cut' }, CUT));
}

/** Rows of the group that is looked at, as arguments of slice. */
function span(run) {
  const [, , first, count] = groupsOf(run)[look.group];
  return [first, first + count];
}

// The parts of the browser that stay: a slider must not go while it is dragged.
const shown = {
  group: h('div'),
  at: h('b', { id: 'at' }),
  earlier: h('button', {
    type: 'button', 'aria-label': 'earlier', onclick() { walk(-1); } }, '←'),
  later: h('button', {
    type: 'button', 'aria-label': 'later', onclick() { walk(1); } }, '→'),
  slider: h('input', {
    type: 'range', id: 'step', min: 0, 'aria-label': 'step',
    oninput() { walk(0, +this.value); } }),
  unfold: h('input', {
    type: 'checkbox', id: 'unfold', onchange() {
      look.unfold = this.checked;
      open(look.run, look.group, look.row);
    } }),
};
const browser = h('div', { id: 'browser', onkeydown(event) {
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (by && event.target.tagName !== 'INPUT') walk(by);
} },
h('div', { class: 'row' }, shown.earlier, shown.slider, shown.later, shown.at,
  h('label', {}, shown.unfold, 'unfold the reasoning')),
shown.group);

/** To the step at this place among those with completions, or by so many. */
function walk(by, from = +shown.slider.value) {
  const steps = [...bySteps(look.run).values()];
  const groups = steps[Math.max(0, Math.min(from + by, steps.length - 1))];
  open(look.run, telling(look.run, groups));
}

/** Of some groups the first whose rewards differ: the others teach nothing. */
function telling(run, groups) {
  return groups.find((g) => !equal(run, g)) ?? groups[0];
}

function equal(run, group) {
  const { groups, reward } = DATA.runs[run].completions;
  const [, , first, count] = groups[group];
  return new Set(known(reward.slice(first, first + count))).size < 2;
}

/** Looks at a group, and at a completion in it. */
function open(run, group, row = -1) {
  Object.assign(look, { run, group, row });
  const c = DATA.runs[run].completions, [step, problem] = c.groups[group];
  const all = bySteps(run), at = [...all.keys()].indexOf(step);
  shown.slider.max = all.size - 1;
  shown.slider.value = at;
  shown.earlier.disabled = at === 0;
  shown.later.disabled = at === all.size - 1;
  shown.at.textContent = `step ${step}`;

  const [prompt, answer] = c.problems[problem], rows = ranked(run, group);
  const right = rows.filter((row) => verdict(run, row) === 'right').length;
  const again = visits(run).get(problem), visit = again.indexOf(group);
  const near = again.slice(Math.max(0, visit - 4), visit + 5);
  const link = (g, text) => h('button', {
    type: 'button', class: 'link', onclick() { open(run, g); } }, text);
  shown.group.replaceChildren(
    h('div', { class: 'problems' }, all.get(step).map((g) => h('button', {
      type: 'button', 'aria-pressed': String(g === group), dir: 'auto',
      title: c.problems[c.groups[g][1]][0],
      onclick() { open(run, g); } },
      h('b', {}, `${decimals(groupReward(run, g))} `),
      lastLine(c.problems[c.groups[g][1]][0])))),
    h('div', { class: 'prompt', dir: 'auto' }, prompt),
    h('p', {},
      answer && ['The answer is ', h('b', { dir: 'auto' }, answer), '. '],
      `${right} of ${plural(rows.length, 'completion')} right`,
      equal(run, group) ? '. All rewards are equal: nothing is learnt from this group.'
        : h('span', { class: 'soft' }, ', the best first.'),
      again.length > 1 && h('span', { id: 'visits' },
        `Visit ${visit + 1} of ${again.length} of this problem: `,
        near.map((g) => [
          g === group ? h('b', {}, `step ${c.groups[g][0]}`)
            : link(g, `step ${c.groups[g][0]}`),
          h('span', { class: 'soft' }, ` ${decimals(groupReward(run, g))}  `)]))),
    h('div', { class: 'cards' }, rows.map((row, i) => card(run, row, i + 1, rows))));
  shown.group.querySelector('.chosen')?.scrollIntoView({ block: 'nearest' });
}

function groupReward(run, group) {
  const { groups, reward } = DATA.runs[run].completions;
  const [, , first, count] = groups[group];
  return mean(reward.slice(first, first + count));
}

/** Chat prompts begin with what is the same for all; the end tells more. */
function lastLine(text) {
  const lines = text.split('\n').map((x) => x.trim()).filter(Boolean);
  const line = lines[lines.length - 1] ?? '(empty)';
  return line.length > 70 ? `${line.slice(0, 70)}…` : line;
}

/** Mean reward of what was logged, step by step; a click opens a step. */
function overview(run) {
  const lines = () => {
    const x = [], y = [];
    for (const [step, groups] of bySteps(run)) {
      x.push(step);
      y.push(mean(groups.map((g) => groupReward(run, g))));
    }
    const g = DATA.groups.findIndex((group) => group.runs.includes(run));
    return [{ name: DATA.runs[run].name, colour: colour(g), dash: '',
      ...combine([{ x, y }]) }];
  };
  return chart('Reward of the logged completions; click to open a step', '', lines, {
    height: 84, label: 'step',
    pick: (step) => open(run, telling(run, bySteps(run).get(step))) });
}

function completions() {
  const some = DATA.runs.map((_, i) => i).filter((i) => groupsOf(i).length);
  if (!some.length) {
    return [h('p', { class: 'soft' },
      'No completions yet: they are logged every log.completions_every steps.')];
  }
  const strip = h('div');
  const choose = (run) => {
    strip.replaceChildren(overview(run));
    drawAgain();
    open(run, telling(run, [...bySteps(run).values()].pop()));
  };
  const select = h('select', {
    id: 'run', 'aria-label': 'run', onchange() { choose(+this.value); } },
    some.map((i) => h('option', { value: i }, DATA.runs[i].name)));
  opened = (run, group, row) => {
    if (select.value !== String(run)) {
      select.value = run;
      strip.replaceChildren(overview(run));
      drawAgain();
    }
    open(run, group, row);
    browser.scrollIntoView({ block: 'start' });
  };
  choose(some[0]);
  const total = sum(some.map((i) => DATA.runs[i].completions.text.length));
  return [
    search(some, total),
    some.length > 1 && h('div', { class: 'row' }, h('label', {}, 'run '), select),
    strip, browser];
}

let opened = () => {}; // (run, group, row): as open, from elsewhere on the page.
let searchFor = () => {}; // ({said, from, to, run}): fills the search in.

const PAGE = 30; // Results at one time.

function search(some, total) {
  const text = h('input', {
    type: 'search', id: 'query', placeholder: `search ${plural(total, 'completion')}`,
    'aria-label': 'search completions', size: 28 });
  const choice = (id, label, options) => h('select', { id, 'aria-label': label },
    options.map(([value, text]) => h('option', { value }, text)));
  const verdicts = choice('verdict', 'verdict', [
    ['', 'right or wrong'], ['right', 'right'], ['wrong', 'wrong'],
    ['unscored', 'not scored']]);
  const cut = choice('cut', 'cut', [
    ['', 'cut or not'], ['1', 'cut at the limit'], ['0', 'ended']]);
  const phrases = [...new Set(some.flatMap((i) => DATA.runs[i].phrases))];
  const said = choice('said', 'reflection', [
    ['', 'any words'], ['*', 'with reflection'], ...phrases.map((x) => [x, `“${x}”`])]);
  const where = choice('where', 'runs', [
    ['', 'all runs'], ...some.map((i) => [i, DATA.runs[i].name])]);
  const from = h('input', { type: 'number', id: 'from', placeholder: 'from', 'aria-label': 'from step' });
  const to = h('input', { type: 'number', id: 'to', placeholder: 'to', 'aria-label': 'to step' });
  const status = h('p', { id: 'found', class: 'soft', role: 'status' });
  const list = h('ul', { class: 'results' });
  const more = h('button', { type: 'button', hidden: true }, 'more');
  let found = [];

  function add() {
    const shown = list.children.length;
    list.append(...found.slice(shown, shown + PAGE).map(result));
    more.hidden = list.children.length >= found.length;
  }
  more.addEventListener('click', add);

  function update() {
    const asked = [text, verdicts, cut, said, where, from, to]
      .some((input) => input.value !== '');
    const query = text.value
      ? new RegExp(escaped(text.value), /^[\x00-\x7f]*$/.test(text.value) ? 'gi' : 'giu')
      : null;
    const changed = String(query) !== String(look.query);
    look.query = query;
    const begun = performance.now();
    found = asked ? matches(some, query, {
      verdict: verdicts.value, cut: cut.value, said: said.value,
      run: where.value, from: from.value, to: to.value }) : [];
    list.replaceChildren();
    add();
    status.textContent = asked ? plural(found.length, 'completion')
      + ` of ${total.toLocaleString('en')} in `
      + plural(new Set(found.map(({ run, group }) => `${run} ${group}`)).size, 'group')
      : '';
    status.dataset.ms = performance.now() - begun;
    if (changed) open(look.run, look.group, look.row); // To mark what was found.
  }
  for (const input of [text, verdicts, cut, said, where, from, to])
    input.addEventListener('input', update);
  searchFor = (values) => {
    text.value = verdicts.value = cut.value = '';
    said.value = values.said ?? '';
    where.value = values.run ?? '';
    from.value = values.from ?? '';
    to.value = values.to ?? '';
    update();
    form.scrollIntoView({ block: 'start' });
  };
  const form = h('div', { id: 'search' },
    h('div', { class: 'row' }, text, verdicts, cut, said,
      some.length > 1 && where, h('span', {}, 'steps ', from, ' – ', to),
      h('button', { type: 'button', onclick() { searchFor({}); } }, 'clear')),
    status, list, more);
  return form;
}

/** Completions that fit all that is asked, in the order of the files. */
function matches(some, query, asked) {
  const found = [];
  for (const run of some) {
    if (asked.run !== '' && +asked.run !== run) continue;
    const { completions: c, phrases } = DATA.runs[run];
    const phrase = phrases.indexOf(asked.said);
    if (asked.said && asked.said !== '*' && phrase < 0) continue;
    c.groups.forEach(([step, , first, count], group) => {
      if (asked.from !== '' && step < +asked.from) return;
      if (asked.to !== '' && step > +asked.to) return;
      for (let row = first; row < first + count; row++) {
        if (asked.verdict && verdict(run, row) !== asked.verdict) continue;
        if (asked.cut && c.cut[row] !== +asked.cut) continue;
        const words = c.said[row];
        if (asked.said && !(asked.said === '*' ? words : words?.includes(phrase)))
          continue;
        if (query && c.text[row].search(query) < 0) continue;
        found.push({ run, group, row, step });
      }
    });
  }
  return found;
}

function result({ run, group, row, step }) {
  const c = DATA.runs[run].completions, text = c.text[row];
  const judged = verdict(run, row);
  const all = ranges(DATA.runs[run], text, judged);
  const first = all.find(([, , name]) => name === 'hit')
    ?? all.find(([, , name]) => name === 'said' && look.query == null);
  const start = first ? Math.max(0, first[0] - 60) : 0;
  const end = Math.min(text.length, start + 260);
  return h('li', {}, h('button', {
    type: 'button', onclick() { opened(run, group, row); } },
    h('span', { class: 'soft' }, `step ${step}`,
      DATA.runs.length > 1 && h('small', {}, `  ${DATA.runs[run].name}`)),
    h('span', { class: { right: 'good', wrong: 'bad' }[judged] ?? 'soft' },
      `${{ right: '✓', wrong: '✗', unscored: '?' }[judged]} `,
      signed(c.advantage[row])),
    text ? h('span', { class: 'text', dir: 'auto' },
      start > 0 && '…', painted(text, start, end, all), end < text.length && '…')
      : h('span', { class: 'text empty' }, '(empty)')));
}
