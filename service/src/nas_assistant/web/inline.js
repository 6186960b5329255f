// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// Markdown inside a block: text becomes a flat list of strings, nodes, and marks that may find their
// end; from that the nodes are made in one go, so that no mark without an end costs anything.

import { element } from './dom.js';

const MAX_OPEN = 32; // emphasis and links inside each other
const SPECIAL = /[\\`*_~[\]!<&]|https?:\/\//g;
const ESCAPE = /\\[!-/:-@[-`{-~]/y;
const ENTITY = /&(amp|lt|gt|quot|nbsp|#39);/y;
const ENTITIES = { amp: '&', lt: '<', gt: '>', quot: '"', nbsp: '\u00a0', '#39': "'" };
const BREAK = /<br ?\/?>/iy;
const ANGLE = /<((?:https?:\/\/|mailto:)[^\s<>]+)>/iy;
// ASCII only: in Chinese, text goes on after an address without a space.
const BARE = /https?:\/\/[!#-;=?-Z_a-{}~]+/y;
// Few spaces, since any number at two places would take quadratic time.
const TARGET = /\(\s?<?((?:[^\s()<>]|\([^\s()]*\))*)>?(?:\s{1,3}(?:"[^"]*"|'[^']*'))?\s?\)/y;
// Emphasis does not end after these. After other punctuation it may: Chinese has no spaces there.
const OPENING = /[\s([{“‘（《「【]/;

function match(pattern, text, at) {
  pattern.lastIndex = at;
  return pattern.exec(text);
}

/** An element with what `text` says in it. */
export function inline(tag, text) {
  const tokens = [];
  const open = []; // marks that may still find their end, the innermost last
  const ticks = new Ticks(text);
  const mark = (token) => {
    tokens.push(token);
    open.push(token);
    if (open.length > MAX_OPEN) open.shift();
  };
  for (let at = 0; at < text.length; ) {
    const next = match(SPECIAL, text, at)?.index ?? text.length;
    tokens.push(text.slice(at, next));
    at = next;
    const character = text[at];
    let found;
    if (at === text.length) {
      break;
    } else if (character === '`') {
      const { length, end } = ticks.pair(at);
      const inner = text.slice(at + length, end);
      tokens.push(end < 0 ? '`'.repeat(length) : element('code', { textContent: unpad(inner) }));
      at = end < 0 ? at + length : end + length;
    } else if ('*_~'.includes(character)) {
      at = emphasis(text, at, tokens, open, mark);
    } else if (character === '[' || text.startsWith('![', at)) {
      mark({ raw: character === '[' ? '[' : '![' });
      at += character === '[' ? 1 : 2;
    } else if (character === ']') {
      at = closeLink(text, at, tokens, open);
    } else if ((found = match(ESCAPE, text, at))) {
      tokens.push(text[at + 1]);
      at += 2;
    } else if ((found = match(ENTITY, text, at))) {
      tokens.push(ENTITIES[found[1]]);
      at += found[0].length;
    } else if ((found = match(BREAK, text, at))) {
      tokens.push('\n');
      at += found[0].length;
    } else if ((found = match(ANGLE, text, at)) && address(found[1])) {
      tokens.push(link(found[1], found[1]));
      at += found[0].length;
    } else if ((found = match(BARE, text, at)) && address(trimAddress(found[0]))) {
      const target = trimAddress(found[0]);
      tokens.push(link(target, target));
      at += target.length;
    } else {
      tokens.push(character);
      at += 1;
    }
  }
  return assemble(element(tag), tokens);
}

/** Finds the end of code spans: the next run of backticks that is as long. */
class Ticks {
  constructor(text) {
    this.text = text;
  }

  pair(at) {
    if (!this.runs) {
      this.runs = new Map();
      for (const { 0: run, index } of this.text.matchAll(/`+/g)) {
        if (!this.runs.has(run.length)) this.runs.set(run.length, { places: [], next: 0 });
        this.runs.get(run.length).places.push(index);
      }
    }
    const { length } = match(/`+/y, this.text, at)[0];
    // A backtick behind a backslash starts in the middle of a run.
    const same = this.runs.get(length) ?? { places: [], next: 0 };
    while (same.places[same.next] <= at) same.next += 1;
    return { length, end: same.places[same.next] ?? -1 };
  }
}

const unpad = (inner) => (/^ .*\S.* $/s.test(inner) ? inner.slice(1, -1) : inner);

function emphasis(text, at, tokens, open, mark) {
  const character = text[at];
  let end = at;
  while (text[end] === character) end += 1;
  let left = end - at;
  const before = text[at - 1] ?? ' ';
  const after = text[end] ?? ' ';
  const isWord = (neighbour) => character === '_' && /[\p{L}\p{N}]/u.test(neighbour);
  const fits = character === '~' ? left === 2 : left <= 3;
  if (fits && !OPENING.test(before) && !isWord(after)) {
    for (let i = open.length - 1; i >= 0 && left > 0; i -= 1) {
      if (open[i].character !== character || open[i].size > left) continue;
      const size = open[i].size;
      open[i].tag = character === '~' ? 'del' : size === 2 ? 'strong' : 'em';
      open.length = i;
      tokens.push({ ends: true });
      left -= size;
    }
  }
  if (fits && left > 0 && /\S/.test(after) && !isWord(before)) {
    if (left > 1) mark({ raw: character.repeat(2), character, size: 2 });
    if (left !== 2) mark({ raw: character, character, size: 1 });
  } else if (left > 0) {
    tokens.push(character.repeat(left));
  }
  return end;
}

function closeLink(text, at, tokens, open) {
  const i = open.findLastIndex((token) => token.raw.endsWith('['));
  const target = i < 0 ? null : match(TARGET, text, at + 1);
  if (target && address(target[1])) {
    Object.assign(open[i], { tag: 'a', target: target[1] });
    // What was open inside stays text, and no link has another one around it.
    const outer = open.slice(0, i).filter((token) => !token.raw.endsWith('['));
    open.splice(0, open.length, ...outer);
    tokens.push({ ends: true });
    return at + 1 + target[0].length;
  }
  if (i >= 0) open.splice(i, 1);
  tokens.push(']');
  return at + 1;
}

function assemble(root, tokens) {
  let node = root;
  let held = '';
  const flush = () => {
    if (held) node.append(held);
    held = '';
  };
  for (const token of tokens) {
    if (typeof token === 'string') held += token;
    else if (token.raw && !token.tag) held += token.raw;
    else {
      flush();
      if (token.ends) {
        // An image without a text is a link all the same.
        if (!node.hasChildNodes()) node.append(node.title);
        if (node.host) node.dataset.host = node.host;
        node = node.parentNode;
      } else if (token instanceof Node) {
        node.append(token.href && node.closest('a') ? token.textContent : token);
      } else {
        const inner = token.tag === 'a' ? link(token.target) : element(token.tag);
        node.append(inner);
        node = inner;
      }
    }
  }
  flush();
  return root;
}

/** The address if it may be followed, or null. Addresses of the page itself are none. */
function address(text) {
  const url = URL.canParse(text) ? new URL(text) : null;
  return url && ['http:', 'https:', 'mailto:'].includes(url.protocol) ? url.href : null;
}

function trimAddress(text) {
  let end = text.length;
  while (end > 0 && '.,;:!?)]}*_~\'"'.includes(text[end - 1])) end -= 1;
  return text.slice(0, end);
}

function link(target, text = '') {
  const href = address(target);
  // The title shows where it leads, whatever the text says.
  return element('a', { href, title: href, target: '_blank', rel: 'noopener noreferrer nofollow', textContent: text });
}
