// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The admin page: asks how the service does, again and again, and shows it.

import { ADMIN_WORDS } from './admin-words.js';
import { ApiError, readStatus } from './api.js';
import { element, morph } from './dom.js';
import { ago, figures } from './figures.js';
import { enterKey, refuses } from './key.js';
import { $, announce, useLanguage, useTheme } from './page.js';
import { getKey, recall } from './settings.js';
import { learn, say, sayNote } from './words.js';

const EVERY = 5000; // ms
let status; // the last one that came
let came; // when
let trouble; // why none came since
let refusedKey; // the one that another was asked for last
let timer;
let refreshing;

/** Ask now, and again after a while for as long as somebody looks. */
function refresh(how = fetchStatusOrKey) {
  clearTimeout(timer);
  refreshing ??= how().finally(() => {
    refreshing = undefined;
    if (!document.hidden) timer = setTimeout(refresh, EVERY);
  });
}

/** Ask for the state, and for another key where this one is refused, once. */
async function fetchStatusOrKey() {
  const key = getKey();
  await fetchStatus(key);
  if (!needsKey() || key === refusedKey) return;
  refusedKey = key;
  await askKey(sayNote(trouble));
}

/** Show the state, or what went wrong, which it gives too. */
async function fetchStatus(key) {
  try {
    if (!key) throw new ApiError('no_admin_key');
    const told = await readStatus(key);
    // A service that was upgraded meanwhile may tell what this page does not know.
    morph($('figures'), element('div', { id: 'figures' }, ...figures(told)));
    status = told;
    came = Date.now();
    trouble = undefined;
  } catch (error) {
    trouble = error.note ?? { code: 'other', message: String(error) };
  }
  show();
  return trouble;
}

const needsKey = () => refuses(trouble) || trouble?.code === 'no_admin_key';

async function askKey(sentence = '') {
  const entered = await enterKey(fetchStatus, sentence);
  // The button that opened the form is gone.
  if (entered) $('heading').focus();
}

function condition() {
  if (status.reason) return say('notReady', status);
  return status.degraded ? say('degraded', status) : say('ready');
}

function show() {
  const well = !trouble && !status.reason && !status.degraded;
  const sentence = trouble ? sayNote(trouble) : condition();
  const lines = [element('p', { id: 'sentence' }, sentence)];
  if (trouble && status) lines.push(element('p', {}, say('age', { age: ago(Date.now() - came) })));
  if (status?.not_written) {
    lines.push(element('p', { className: 'warning' }, say('notWritten', { reason: status.not_written })));
  }
  if (status?.log_text) lines.push(element('p', { className: 'warning' }, say('logsText')));
  morph($('health'), element('div', { id: 'health', className: well ? 'well' : 'unwell' }, ...lines));
  $('figures').classList.toggle('old', Boolean(trouble));
  $('enter-key').hidden = !needsKey();
  // Figures come without a word; that it got well or ill is said once.
  if ($('status').textContent !== sentence) announce(sentence);
}

learn(ADMIN_WORDS);
useLanguage(recall('local', 'language'));
useTheme(recall('local', 'theme'));
document.title = `${say('heading')} – ${say('app')}`;
document.addEventListener('visibilitychange', () => (document.hidden ? clearTimeout(timer) : refresh()));
$('enter-key').addEventListener('click', async () => {
  await refreshing;
  refresh(askKey);
});
refresh();
