// Elements, numbers, and the small mathematics of curves.

const SVG = 'http://www.w3.org/2000/svg';

/** An element. Children are nodes or texts; a text never becomes HTML. */
function h(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

function s(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((x) => x != null && x !== false));
  return node;
}

/** Three digits or so: 0.0123, 1.50, 1,234, 1.2e-7. */
function number(x) {
  if (x == null) return '–';
  const size = Math.abs(x);
  if (size === 0) return '0';
  if (size < 0.001 || size >= 1e7) return x.toExponential(1);
  if (Number.isInteger(x)) return x.toLocaleString('en');
  if (size >= 1000) return Math.round(x).toLocaleString('en');
  return size >= 100 ? x.toFixed(0) : x.toFixed(size < 0.1 ? 4 : size < 10 ? 2 : 1);
}

const decimals = (x) => x == null ? '–' : x.toFixed(2);

function percent(x, digits = 1) {
  return x == null ? '–' : `${(100 * x).toFixed(digits)}%`;
}

function signed(x) {
  return x == null ? '–' : (x > 0 ? '+' : x < 0 ? '−' : '') + Math.abs(x).toFixed(2);
}

function plural(count, one, many = `${one}s`) {
  return `${count.toLocaleString('en')} ${count === 1 ? one : many}`;
}

const known = (values) => values.filter((x) => x != null);
const sum = (values) => values.reduce((a, b) => a + b, 0);

function mean(values) {
  const found = known(values);
  return found.length ? sum(found) / found.length : null;
}

/** Centred running mean of what is known; at both ends over what there is. */
function smooth(values, window) {
  const totals = [0], counts = [0];
  values.forEach((x, i) => {
    totals.push(totals[i] + (x ?? 0));
    counts.push(counts[i] + (x != null));
  });
  const before = Math.floor(window / 2), after = window - before;
  return values.map((_, i) => {
    const from = Math.max(0, i - before), to = Math.min(values.length, i + after);
    const count = counts[to] - counts[from];
    return count ? (totals[to] - totals[from]) / count : null;
  });
}

/** Round numbers from low to high. */
function ticks(low, high, count = 4) {
  const raw = (high - low) / count, size = 10 ** Math.floor(Math.log10(raw));
  const step = size * [1, 2, 2.5, 5, 10].find((x) => x * size >= raw * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++)
    found.push(+(i * step).toPrecision(12));
  return found;
}
