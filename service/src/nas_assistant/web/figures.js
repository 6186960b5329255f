// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// How the service's state looks.

import { element } from './dom.js';
import { say } from './words.js';

const MIB = 2 ** 20;

/** The sections of the page for a state as /admin/status tells it. */
export function figures(status) {
  return [
    summary(status),
    section(
      say('models'),
      [
        ...[say('name'), say('state'), say('slots'), say('context'), say('tokensPerSecond')],
        ...[say('firstToken'), say('need'), say('served')],
      ],
      modelRows(status),
      say('noModels'),
    ),
    ...cloud(status.upstreams),
    section(
      say('keys'),
      [say('name'), say('role'), say('limits'), say('allowedModels'), say('lastDay'), say('usedToday')],
      status.keys.map(keyRow),
      say('noKeys'),
    ),
    section(
      say('errors'),
      [say('time'), say('event'), say('message')],
      status.errors.toReversed().map(errorRow),
      say('noErrors'),
    ),
  ];
}

function summary(status) {
  const all = { requests: 0, prompt_tokens: 0, completion_tokens: 0 };
  for (const { served } of status.models) for (const name of Object.keys(all)) all[name] += served[name];
  const facts = [
    [say('memory'), memory(status.memory)],
    [say('queue'), say('waitingOf', { n: number(status.waiting), m: number(status.queue) })],
    [say('servedSince'), usage(all)],
    [say('upSince'), moment(status.started, { dateStyle: 'medium', timeStyle: 'short' })],
    [say('version'), status.version],
  ];
  return element(
    'dl',
    { className: 'summary' },
    ...facts.map(([name, value]) => element('div', {}, element('dt', {}, name), element('dd', {}, value))),
  );
}

function memory({ used, limit }) {
  // Where the kernel does not say what is in use, it is 0.
  const words = say(used ? 'usedOf' : 'limitOnly', { used: size(used), limit: size(limit) });
  const most = 0.9 * limit; // beyond, it looks like trouble
  const bar = { min: 0, max: limit, low: most, high: most, optimum: 0, value: used, ariaLabel: say('memory') };
  return element('div', {}, used ? element('meter', bar) : '', words);
}

function modelRows({ models, unusable }) {
  const known = new Set(models.map(({ name }) => name));
  const others = Object.keys(unusable).filter((name) => !known.has(name));
  return [
    ...models.map((model) => modelRow(model, unusable[model.name])),
    ...others.map((name) => ({ key: name, cells: [element('strong', {}, name), refusal(unusable[name])] })),
  ];
}

function modelRow(model, reason) {
  const marks = [mark(model.in_memory ? say('inMemory') : say('onRequest'), model.in_memory)];
  if (model.pinned) marks.push(mark(say('pinned')));
  return {
    key: model.name,
    cells: [
      stack(element('strong', {}, model.name), small(say(`kind_${model.kind}`)), small(model.file)),
      reason ? refusal(reason) : element('div', { className: 'marks' }, ...marks),
      say('nOfM', { n: number(model.slots_in_use), m: number(model.slots) }),
      number(model.context),
      model.tokens_per_second ? number(model.tokens_per_second) : '–',
      model.first_token_seconds ? unit(model.first_token_seconds, 'second') : '–',
      need(model.memory),
      usage(model.served),
    ],
  };
}

/** A section, where the mode allows any. */
function cloud(upstreams) {
  if (!upstreams.length) return [];
  const names = [say('name'), say('upstream'), say('state'), say('slots'), say('firstToken'), say('servedThere')];
  const rows = upstreams.flatMap((upstream) => upstream.models.map((model) => cloudRow(upstream, model)));
  return [section(say('cloud'), names, rows, say('noCloudModels'))];
}

function cloudRow({ name, url, paused }, model) {
  return {
    key: model.name,
    cells: [
      stack(element('strong', {}, model.name), small(say(`kind_${model.kind}`)), small(model.model)),
      stack(element('span', {}, name), small(url)),
      paused ? refusal(paused) : mark(say('answers'), true),
      say('nOfM', { n: number(model.slots_in_use), m: number(model.slots) }),
      model.first_token_seconds ? unit(model.first_token_seconds, 'second') : '–',
      usage(model.served),
    ],
  };
}

function refusal(reason) {
  return stack(element('strong', { className: 'danger' }, say('unusable')), foreign('small', reason));
}

function need({ total, ...parts }) {
  const terms = Object.entries(parts).map(([name, bytes]) =>
    element('div', {}, element('dt', {}, say(`memory_${name}`)), element('dd', {}, mebibytes(bytes))),
  );
  return element('details', {}, element('summary', {}, size(total)), element('dl', { className: 'sum' }, ...terms));
}

function keyRow(key) {
  const limits = [
    key.requests_per_minute && say('perMinute', { n: number(key.requests_per_minute) }),
    key.tokens_per_day && say('perDay', { n: number(key.tokens_per_day) }),
    key.parallel && say('atOnce', { n: number(key.parallel) }),
    key.local_only && say('localOnly'),
  ].filter(Boolean);
  return {
    key: key.name,
    cells: [
      element('strong', {}, key.name),
      key.role === 'admin' ? mark(say('roleAdmin'), true) : say('roleUser'),
      limits.length ? stack(...limits.map((limit) => element('span', {}, limit))) : say('none'),
      key.models.join(', ') || say('all'),
      key.expires ? lastDay(key.expires) : say('none'),
      usage(key.used_today),
    ],
  };
}

function lastDay(day) {
  const text = new Intl.DateTimeFormat(language(), { dateStyle: 'medium', timeZone: 'UTC' }).format(new Date(day));
  const node = element('time', { dateTime: day }, text);
  // It is valid until the day ends, by UTC.
  if (day >= new Date().toISOString().slice(0, 10)) return node;
  return stack(node, element('strong', { className: 'danger' }, say('expired')));
}

function errorRow({ time, event, model, message }) {
  return {
    key: `${time} ${event} ${model} ${message}`,
    cells: [
      moment(time, { dateStyle: 'medium', timeStyle: 'medium' }),
      stack(element('code', {}, event), model && small(model)),
      foreign('span', message),
    ],
  };
}

// --- pieces ---------------------------------------------------------------------------------------

/** A heading and a table. It stays one for a screen reader where CSS stacks its cells. */
function section(heading, columns, rows, empty) {
  const title = element('h2', {}, heading);
  if (!rows.length) return element('section', {}, title, element('p', {}, empty));
  const header = columns.map((name) => element('th', { scope: 'col', role: 'columnheader' }, name));
  const table = element(
    'table',
    { role: 'table', ariaLabel: heading },
    element('thead', { role: 'rowgroup' }, element('tr', { role: 'row' }, ...header)),
    element('tbody', { role: 'rowgroup' }, ...rows.map((each) => row(columns, each))),
  );
  return element('section', {}, title, table);
}

/** A row with fewer cells than columns has a last one that takes the rest. */
function row(columns, { key, cells }) {
  const nodes = cells.map((content, i) => {
    const first = { scope: 'row', role: 'rowheader' };
    const node = element(i ? 'td' : 'th', i ? { role: 'cell' } : first, content);
    node.dataset.column = columns[i];
    return node;
  });
  if (cells.length < columns.length) nodes.at(-1).colSpan = columns.length - cells.length + 1;
  const node = element('tr', { role: 'row' }, ...nodes);
  node.dataset.key = key;
  return node;
}

const stack = (...lines) => element('div', { className: 'lines' }, ...lines.filter(Boolean));
const small = (text) => element('small', {}, text);
const mark = (text, strong) => element('span', { className: strong ? 'mark strong' : 'mark' }, text);
/** What the service says is English, whatever the page speaks. */
const foreign = (tag, text) => element(tag, { lang: 'en' }, text);

function usage(used) {
  return stack(
    element('span', {}, say('requests', { n: number(used.requests) })),
    used.requests &&
      small(say('readAndWritten', { read: number(used.prompt_tokens), written: number(used.completion_tokens) })),
  );
}

// --- numbers and times ----------------------------------------------------------------------------

const language = () => document.documentElement.lang;

function number(value, options) {
  return new Intl.NumberFormat(language(), options).format(value);
}

function unit(value, name) {
  return number(value, { style: 'unit', unit: name, unitDisplay: 'narrow', maximumSignificantDigits: 2 });
}

/** Rounded up, as the service does it in its messages. */
const mebibytes = (bytes) => `${number(Math.ceil(bytes / MIB))} MiB`;

function size(bytes) {
  if (bytes < 1024 * MIB) return mebibytes(bytes);
  return `${number(bytes / (1024 * MIB), { maximumFractionDigits: 1 })} GiB`;
}

/** In the time zone of whoever looks; that of the service is in the title. */
function moment(time, options) {
  const text = new Intl.DateTimeFormat(language(), options).format(new Date(time));
  const universal = new Date(time).toISOString();
  return element('time', { dateTime: time, title: `${universal.slice(0, 10)} ${universal.slice(11, 19)} UTC` }, text);
}

/** How long ago something was: “10 seconds ago”. */
export function ago(milliseconds) {
  const seconds = Math.max(1, Math.round(milliseconds / 1000));
  const units = [['day', 86400], ['hour', 3600], ['minute', 60], ['second', 1]];
  const [name, length] = units.find(([, each]) => seconds >= each);
  return new Intl.RelativeTimeFormat(language()).format(-Math.floor(seconds / length), name);
}
