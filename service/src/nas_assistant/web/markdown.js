// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// Markdown to DOM nodes: the blocks. An answer may be hostile: text only becomes text nodes, links
// lead to the web or to mail, nothing is loaded, and no input takes more than linear time.

import { element, iconButton } from './dom.js';
import { inline } from './inline.js';

const MAX_DEPTH = 10; // lists and quotes inside each other
const MAX_LENGTH = 60_000; // characters with a format; the rest is plain text

const RIGHT_TO_LEFT = /[\p{Script=Arabic}\p{Script=Hebrew}\p{Script=Syriac}\p{Script=Thaana}]/u;

const drawn = new WeakMap();

/** Show `text` in `target`. What has not changed since the last time keeps its nodes. */
export function render(target, text) {
  // Not dir="auto": the browser would go through the whole text for each node that is added.
  target.dir = RIGHT_TO_LEFT.test(/\p{L}/u.exec(text)?.[0]) ? 'rtl' : 'ltr';
  const lines = text.slice(0, MAX_LENGTH).split(/\r?\n/);
  const before = drawn.get(target) ?? [];
  const sources = [];
  let changed = false;
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const { end, build } = block(lines, i, 0);
    const source = lines.slice(i, end).join('\n');
    if (!changed && before[sources.length] !== source) {
      changed = true;
      while (target.childNodes.length > sources.length) target.lastChild.remove();
    }
    if (changed) target.append(build());
    sources.push(source);
    i = end;
  }
  while (target.childNodes.length > sources.length) target.lastChild.remove();
  if (text.length > MAX_LENGTH) target.append(element('p', { textContent: text.slice(MAX_LENGTH) }));
  drawn.set(target, sources);
}

// --- blocks: each starts at line `i`, says where it ends, and builds one node ---------------------

function block(lines, i, depth) {
  const deeper = depth < MAX_DEPTH;
  if (fence(lines[i])) return code(lines, i);
  if (heading(lines[i])) {
    const [, marks, text] = heading(lines[i]);
    // The page's own headings are h1 and h2.
    const tag = `h${Math.min(6, marks.length + 2)}`;
    return { end: i + 1, build: () => inline(tag, text.trim().replace(/ #+$/, '')) };
  }
  if (isRule(lines[i])) return { end: i + 1, build: () => element('hr') };
  if (deeper && isQuote(lines[i])) return quote(lines, i, depth);
  if (deeper && item(lines[i])) return list(lines, i, depth);
  if (isTable(lines, i)) return table(lines, i);
  let end = i + 1;
  while (end < lines.length && !(deeper ? interrupts(lines, end) : !lines[end].trim())) end += 1;
  return {
    end,
    build: () => inline('p', lines.slice(i, end).map((line) => line.trim()).join('\n')),
  };
}

function interrupts(lines, i) {
  const line = lines[i];
  const found = item(line);
  return (
    !line.trim() || fence(line) || heading(line) || isRule(line) || isQuote(line) ||
    isTable(lines, i) || (found && (!found.ordered || found.start === 1))
  );
}

function fill(parent, lines, depth) {
  for (let i = 0; i < lines.length; ) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const { end, build } = block(lines, i, depth);
    parent.append(build());
    i = end;
  }
  return parent;
}

const heading = (line) => /^ {0,3}(#{1,6})( .*|$)/.exec(line);
const isQuote = (line) => /^ {0,3}>/.test(line);
const isRule = (line) => /^(\*{3,}|-{3,}|_{3,})$/.test(line.replace(/\s/g, ''));

function fence(line) {
  const found = /^\s{0,3}(`{3,}|~{3,})/.exec(line);
  if (!found) return null;
  const info = line.slice(found[0].length).trim();
  return info.includes('`') ? null : { marks: found[1], language: /^\S{0,30}/.exec(info)[0] };
}

function code(lines, i) {
  const { marks, language } = fence(lines[i]);
  const shift = indent(lines[i]);
  const closes = (line) => {
    const text = line.trim();
    return text.length >= marks.length && text[0] === marks[0] && /^(`+|~+)$/.test(text);
  };
  let end = i + 1;
  while (end < lines.length && !closes(lines[end])) end += 1;
  const build = () => {
    const text = lines.slice(i + 1, end).map((line) => outdent(line, shift)).join('\n');
    const pre = element('pre', { tabIndex: 0, dir: 'ltr' }, element('code', { textContent: text }));
    const label = element('span', { textContent: language });
    return element('div', { className: 'code' }, label, iconButton('copy', 'copy-code', 'copyCode'), pre);
  };
  return { end: Math.min(end + 1, lines.length), build };
}

function quote(lines, i, depth) {
  let end = i;
  while (end < lines.length && isQuote(lines[end])) end += 1;
  const inner = () => lines.slice(i, end).map((line) => line.replace(/^ {0,3}> ?/, ''));
  return { end, build: () => fill(element('blockquote'), inner(), depth + 1) };
}

function item(line) {
  const found = /^\s*(?:[-*+]|(\d{1,9})[.)])(?=\s|$)/.exec(line);
  if (!found) return null;
  const rest = line.slice(found[0].length);
  const gap = indent(rest);
  const ordered = found[1] !== undefined;
  // More than four spaces belong to what is in the item.
  const width = indent(line) + found[0].trim().length + (gap > 4 || !rest.trim() ? 1 : gap);
  return { ordered, start: Number(found[1]), indent: indent(line), width, rest: rest.trimStart() };
}

function list(lines, i, depth) {
  const first = item(lines[i]);
  const items = [];
  while (i < lines.length) {
    const head = item(lines[i]);
    if (!head || head.ordered !== first.ordered || head.indent > first.indent + 1) break;
    if (isRule(lines[i])) break;
    const inner = [head.rest];
    items.push(inner);
    i += 1;
    while (i < lines.length) {
      let next = i;
      while (next < lines.length && !lines[next].trim()) next += 1;
      if (next === lines.length) break;
      // Models often indent by two, whatever the width of the marker is.
      if (indent(lines[next]) >= head.indent + 2) {
        while (i < next) inner.push(lines[i++]);
        inner.push(outdent(lines[i++], head.width));
      } else if (next === i && !interrupts(lines, i) && !item(lines[i])) {
        inner.push(lines[i++].trim());
      } else {
        if (item(lines[next])) i = next;
        break;
      }
    }
  }
  const build = () => {
    const node = element(first.ordered ? 'ol' : 'ul');
    if (first.ordered) node.start = first.start;
    for (const inner of items) node.append(fill(element('li'), inner, depth + 1));
    return node;
  };
  return { end: i, build };
}

const cells = (line) =>
  line.trim().replace(/^\|/, '').replace(/(?<!\\)\|$/, '').split(/(?<!\\)\|/).map((cell) => cell.trim());

function isTable(lines, i) {
  if (!lines[i].includes('|') || !lines[i + 1]?.includes('-')) return false;
  const marks = cells(lines[i + 1]);
  return marks.every((mark) => /^:?-+:?$/.test(mark)) && marks.length === cells(lines[i]).length;
}

function table(lines, i) {
  let end = i + 2;
  while (end < lines.length && lines[end].includes('|')) end += 1;
  const build = () => {
    const sides = cells(lines[i + 1]).map((mark) =>
      mark.endsWith(':') ? (mark.startsWith(':') ? 'center' : 'end') : 'start');
    const row = (line, tag) => {
      const texts = cells(line).slice(0, sides.length);
      const made = texts.map((text, n) => {
        const cell = inline(tag, text.replaceAll('\\|', '|'));
        cell.className = sides[n];
        return cell;
      });
      return append(element('tr'), made);
    };
    const rows = lines.slice(i + 2, end).map((line) => row(line, 'td'));
    const whole = element('table', {}, element('thead', {}, row(lines[i], 'th')), append(element('tbody'), rows));
    return element('div', { className: 'table', tabIndex: 0 }, whole);
  };
  return { end, build };
}

/** Like `parent.append(...nodes)`, for any number of them. */
function append(parent, nodes) {
  for (const node of nodes) parent.append(node);
  return parent;
}

function indent(line) {
  let columns = 0;
  for (const character of line) {
    if (character === ' ') columns += 1;
    else if (character === '\t') columns += 4;
    else break;
  }
  return columns;
}

function outdent(line, columns) {
  let i = 0;
  for (let seen = 0; i < line.length && seen < columns && (line[i] === ' ' || line[i] === '\t'); i += 1) {
    seen += line[i] === '\t' ? 4 : 1;
  }
  return line.slice(i);
}
