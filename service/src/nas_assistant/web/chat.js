// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The page: what is shown, what is asked, and what every button does.

import { ask, isOutside, listModels } from './api.js';
import { element } from './dom.js';
import { enterKey, refuses } from './key.js';
import { $, announce, openDialog, useLanguage, useTheme } from './page.js';
import { getKey, recall, remember, setKey } from './settings.js';
import * as store from './store.js';
import { messageIdOf, showMessages, showText, spoken } from './thread.js';
import { download, fromJson, toJson, toMarkdown } from './transfer.js';
import { atEnd, copy, following, home, notify, openSide, toEnd } from './window.js';
import { say, sayNote } from './words.js';

const SAVE_EVERY = 2000; // ms, while an answer comes
const question = $('question');
const model = $('model');
const runs = new Map(); // by conversation: the answer that is coming
const stored = new WeakSet(); // conversations that are in the store as they are here
let current;
let editing = ''; // the id of the question that the next one replaces
let listShows = '';

// --- models ---------------------------------------------------------------------------------------

async function loadModels() {
  const trouble = await fetchModels();
  if (refuses(trouble)) await enterKey(fetchModels, sayNote(trouble));
}

/** Fill the model picker. Gives what went wrong, if anything. */
async function fetchModels(key = getKey()) {
  let models = [];
  let trouble;
  try {
    models = await listModels(key);
    if (!models.length) trouble = { code: 'no_model' };
  } catch (error) {
    trouble = noteOf(error);
  }
  const options = models.map(({ id, outside }) => new Option(outside ? say('inCloud', { name: id }) : id, id));
  model.replaceChildren(...(options.length ? options : [new Option(say('noModel'), '')]));
  showModel();
  notify(trouble ? sayNote(trouble) : '', loadModels);
  return trouble;
}

function showModel() {
  const names = [...model.options].map((option) => option.value);
  const wanted = [current.model, recall('local', 'model')];
  model.value = wanted.find((name) => names.includes(name)) ?? names[0] ?? '';
}

// --- conversations --------------------------------------------------------------------------------

/** Apply `change` to a conversation, here and in the store, where another window may have changed it. */
async function keep(conversation, change) {
  change(conversation);
  try {
    if (!stored.has(conversation)) {
      await store.put(conversation);
      stored.add(conversation);
    } else if (!(await store.change(conversation.id, change))) {
      gone(conversation.id);
    }
    await showList();
  } catch (error) {
    stored.delete(conversation);
    storeTrouble(error);
  }
}

function storeTrouble(error) {
  notify(error.name === 'QuotaExceededError' ? say('full') : say('notKept', { reason: error.message }));
}

/** Take over what other windows have made of the conversation. */
async function reload(conversation) {
  if (!stored.has(conversation) || runs.has(conversation.id)) return;
  const found = await store.read(conversation.id).catch(() => conversation);
  if (!found) gone(conversation.id);
  if (!found || runs.has(conversation.id)) return;
  Object.assign(conversation, found);
  if (current === conversation) refresh();
}

function gone(id) {
  stop(id);
  if (current.id !== id) return;
  show(store.newConversation(''));
  notify(say('goneElsewhere'));
}

async function openConversation(id) {
  const before = [current, current.messages.length];
  let found = runs.get(id)?.conversation;
  if (!found) {
    found = await store.read(id).catch(() => undefined);
    if (found) stored.add(found);
  }
  // Whoever has asked something meanwhile stays there.
  if (current === before[0] && current.messages.length === before[1]) show(found ?? store.newConversation(''));
}

/** Show a conversation from its end. */
function show(conversation) {
  current = conversation;
  stopEditing();
  showModel();
  refresh();
  toEnd();
  showList().catch(storeTrouble);
}

/** Show what has changed in the conversation. */
function refresh() {
  const run = runs.get(current.id);
  const title = current.title || say('newConversation');
  remember('session', 'current', current.id);
  document.title = `${title} – ${say('app')}`;
  $('heading').textContent = title;
  $('welcome').hidden = current.messages.length > 0;
  $('send').hidden = Boolean(run);
  $('stop').hidden = !run;
  following(() => showMessages($('thread'), current.messages, run?.message));
}

async function showList() {
  const entries = await store.list();
  // Else, while an answer comes, a button would be exchanged under a finger every two seconds.
  const shows = JSON.stringify([entries, current.id, say('newConversation')]);
  if (shows === listShows) return;
  listShows = shows;
  const focused = $('list').contains(document.activeElement) && document.activeElement.dataset.id;
  $('list').replaceChildren(...entries.map(({ id, title }) => {
    const button = element('button', { type: 'button', dir: 'auto', textContent: title || say('newConversation') });
    button.dataset.id = id;
    if (id === current.id) button.setAttribute('aria-current', 'true');
    return element('li', {}, button);
  }));
  if (focused) $('list').querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
}

async function removeCurrent() {
  const { id, title } = current;
  $('sure-text').textContent = say('deleteSure', { title: title || say('newConversation') });
  if ((await openDialog($('sure'))) !== 'yes') return;
  stop(id);
  runs.delete(id);
  try {
    await store.remove(id);
    show(store.newConversation(''));
  } catch (error) {
    storeTrouble(error);
  }
  home().focus();
}

// --- questions and answers ------------------------------------------------------------------------

async function send() {
  const text = question.value.trim();
  const conversation = current;
  if (!text || runs.has(conversation.id)) return;
  if (!getKey() && !(await enterKey(fetchModels, sayNote({ code: 'no_key' })))) return;
  const replaced = editing;
  const asked = { id: store.newId(), role: 'user', text };
  if (!editing) question.value = '';
  stopEditing();
  notify('');
  keep(conversation, (kept) => {
    cut(kept, replaced);
    kept.messages.push(asked);
    kept.title ||= [...text.split('\n')[0]].slice(0, 60).join('');
    kept.changed = Date.now();
  });
  await answer(conversation);
}

/** Ask for an answer to the last question, in place of any that it has. */
async function answer(conversation) {
  const last = conversation.messages.findLastIndex((message) => message.role === 'user');
  if (last < 0 || runs.has(conversation.id)) return;
  const replaced = conversation.messages[last + 1];
  const questions = conversation.messages[last].id;
  const asked = history(conversation, last);
  const message = { id: store.newId(), role: 'assistant', text: '', model: model.value, note: { code: 'unfinished' } };
  const run = { conversation, message, controller: new AbortController(), saved: Date.now(), cost: 0 };
  runs.set(conversation.id, run);
  keep(conversation, (kept) => {
    cut(kept, questions, 1);
    kept.messages.push(message);
  });
  refresh();
  toEnd();
  announce(say('answering'));
  try {
    message.note = await streamShortened(run, asked);
    if (!message.note) delete message.note;
  } catch (error) {
    message.note = noteOf(error);
    // Asking again must not cost the answer that was there.
    if (!message.text && replaced) Object.assign(message, replaced, { id: message.id, note: message.note });
    else if (isOutside(error.servedBy)) message.outside = true;
  }
  if (runs.get(conversation.id) !== run) return;
  runs.delete(conversation.id);
  keep(conversation, (kept) => write(kept, message)).then(() => reload(conversation));
  if (current !== conversation) return;
  refresh();
  announce(message.note ? sayNote(message.note) : `${say('complete')} ${spoken(message)}`);
  if (refuses(message.note) && (await enterKey(fetchModels, sayNote(message.note)))) await answer(conversation);
}

function noteOf(error) {
  if (error.name === 'AbortError') return { code: 'stopped' };
  return error.note ?? { code: 'other', message: String(error) };
}

/** What the model is told. Neighbours of the same role are one: many templates insist on it. */
function history(conversation, last) {
  const told = [];
  for (const { role, text } of conversation.messages.slice(0, last + 1)) {
    if (!text) continue;
    if (told.at(-1)?.role === role) told.at(-1).content += `\n\n${text}`;
    else told.push({ role, content: text });
  }
  return told;
}

/** Stream the answer, without the oldest messages if all of them are more than the model can read. */
async function streamShortened(run, asked) {
  for (let from = 0; ; ) {
    try {
      const finish = await stream(run, asked.slice(from));
      if (finish === 'length') return { code: 'length' };
      return from ? { code: 'forgot' } : undefined;
    } catch (error) {
      const tooLong = error.note?.code === 'context_length_exceeded' && !run.message.text;
      if (!tooLong || from === asked.length - 1) throw error;
      const half = (from + asked.length) / 2;
      from = asked.findIndex(({ role }, i) => i >= half && role === 'user');
    }
  }
}

async function stream(run, asked) {
  const { conversation, message } = run;
  const system = conversation.system ? [{ role: 'system', content: conversation.system }] : [];
  const body = { model: message.model || undefined, messages: [...system, ...asked] };
  if (!$('think').checked) body.chat_template_kwargs = { enable_thinking: false };
  let finish;
  let began;
  for await (const part of ask(getKey(), body, run.controller.signal)) {
    if (isOutside(part.servedBy)) message.outside = true;
    if (part.finish) finish = part.finish;
    if (part.usage) {
      message.tokens = part.usage.completion_tokens;
      message.seconds = (performance.now() - began) / 1000;
    }
    if (part.thought || part.text) {
      began ??= performance.now();
      if (part.thought) message.thought = (message.thought ?? '') + part.thought;
      else message.text += part.text;
      drawSoon(run);
      if (Date.now() - run.saved > SAVE_EVERY) {
        run.saved = Date.now();
        keep(conversation, (kept) => write(kept, message));
      }
    }
  }
  return finish;
}

function drawSoon(run) {
  if (run.waits) return;
  run.waits = true;
  // A long answer takes long to draw: four fifths of the time stay for everything else.
  setTimeout(() => requestAnimationFrame(() => {
    run.waits = false;
    if (runs.get(current.id) !== run) return;
    const started = performance.now();
    $(`message-${run.message.id}`)?.querySelector('.waiting')?.remove();
    following(() => showText(run.message));
    run.cost = performance.now() - started;
  }), run.cost * 4);
}

const stop = (id) => runs.get(id)?.controller.abort();

/** Take away the message with this id, or what comes `after` it, and all that follows. */
function cut(conversation, id, after = 0) {
  const at = conversation.messages.findIndex((message) => message.id === id);
  if (at >= 0) conversation.messages.length = at + after;
}

function write(conversation, message) {
  const at = conversation.messages.findIndex(({ id }) => id === message.id);
  if (at >= 0) conversation.messages[at] = message;
  conversation.changed = Date.now();
}

function edit(id) {
  editing = id;
  question.value = current.messages.find((message) => message.id === id).text;
  $('editing').hidden = false;
  fitQuestion();
  question.focus();
}

function stopEditing() {
  if (editing) question.value = recall('session', 'draft');
  editing = '';
  $('editing').hidden = true;
  fitQuestion();
}

// --- what the buttons do --------------------------------------------------------------------------

function fitQuestion() {
  if (!editing) remember('session', 'draft', question.value);
  question.style.height = 'auto';
  question.style.height = `${question.scrollHeight}px`;
}

async function importFile(file) {
  let found;
  try {
    found = fromJson(await file.text());
  } catch {
    notify(say('importBad'));
    return;
  }
  let imported = 0;
  try {
    for (const conversation of found) {
      const here = await store.read(conversation.id);
      if (here?.changed >= conversation.changed) continue;
      // What is here is never replaced.
      if (here) conversation.id = store.newId();
      await store.put(conversation);
      imported += 1;
    }
    await showList();
    notify(say('imported', { n: imported, m: found.length - imported }));
  } catch (error) {
    storeTrouble(error);
  }
}

const onOptions = {
  save: () => {
    const [title, system] = [$('title-field').value.trim(), $('system-field').value.trim()];
    keep(current, (kept) => Object.assign(kept, { title, system }));
    refresh();
  },
  export: () => download(`${current.title || say('newConversation')}.md`, 'text/markdown', toMarkdown(current)),
  delete: removeCurrent,
};

const onSettings = {
  key: () => enterKey(fetchModels),
  forget: () => {
    setKey('', false);
    notify(say('forgotten'));
  },
  export: () =>
    store.readAll().then((all) => {
      // What found no room is exported too.
      if (current.messages.length && !stored.has(current)) all.push(current);
      download('conversations.json', 'application/json', toJson(all));
    }, storeTrouble),
  import: () => $('file').click(),
};

const onMessage = {
  copy: (button, message) => copy(button, message.text),
  'copy-code': (button) => copy(button, button.parentNode.querySelector('pre').textContent),
  edit: (_, message) => edit(message.id),
  again: () => {
    answer(current);
    home().focus();
  },
};

$('composer').addEventListener('submit', (event) => {
  event.preventDefault();
  send();
});
question.addEventListener('input', fitQuestion);
question.addEventListener('keydown', (event) => {
  // Enter also chooses a word in an input method; Safari then says 229. On a phone it is a new line.
  const composing = event.isComposing || event.keyCode === 229;
  if (event.key !== 'Enter' || event.shiftKey || composing || matchMedia('(pointer: coarse)').matches) return;
  event.preventDefault();
  send();
});
document.addEventListener('keydown', (event) => {
  if (event.key !== 'Escape' || event.isComposing || document.querySelector('dialog[open]')) return;
  if ($('side').classList.contains('open')) openSide(false);
  else stop(current.id);
});
$('stop').addEventListener('click', () => {
  stop(current.id);
  home().focus();
});
$('edit-cancel').addEventListener('click', stopEditing);
$('to-end').addEventListener('click', toEnd);
$('scroll').addEventListener('scroll', () => ($('to-end').hidden = atEnd()), { passive: true });
$('menu').addEventListener('click', () => openSide(!$('side').classList.contains('open')));
document.querySelector('main').addEventListener('click', ({ target }) => {
  if ($('side').classList.contains('open') && !target.closest('#menu')) openSide(false);
});
$('new').addEventListener('click', () => {
  show(store.newConversation(model.value));
  openSide(false);
});
$('list').addEventListener('click', async ({ target }) => {
  const id = target.closest('button')?.dataset.id;
  if (!id) return;
  await openConversation(id);
  openSide(false);
});
$('thread').addEventListener('click', ({ target }) => {
  const button = target.closest('[data-action]');
  const message = button && current.messages.find(({ id }) => id === messageIdOf(button));
  if (message) onMessage[button.dataset.action](button, message);
});
model.addEventListener('change', () => {
  remember('local', 'model', model.value);
  const chosen = model.value;
  if (current.messages.length) keep(current, (kept) => Object.assign(kept, { model: chosen }));
  else current.model = chosen;
});
$('open-options').addEventListener('click', async () => {
  $('title-field').value = current.title;
  $('system-field').value = current.system;
  onOptions[await openDialog($('options'))]?.();
});
$('open-settings').addEventListener('click', async () => onSettings[await openDialog($('settings'))]?.());
$('file').addEventListener('change', () => {
  importFile($('file').files[0]).finally(() => ($('file').value = ''));
});
$('language').addEventListener('change', () => {
  remember('local', 'language', $('language').value);
  useLanguage($('language').value);
  $('thread').replaceChildren();
  show(current);
});
$('theme').addEventListener('change', () => {
  remember('local', 'theme', $('theme').value);
  useTheme($('theme').value);
});
$('think').addEventListener('change', () => remember('local', 'think', $('think').checked ? '' : 'no'));
store.onChange((id) => {
  if (id === current.id) reload(current);
  showList().catch(storeTrouble);
});

$('language').value = useLanguage(recall('local', 'language'));
$('theme').value = recall('local', 'theme');
useTheme($('theme').value);
$('think').checked = recall('local', 'think') !== 'no';
const last = recall('session', 'current');
current = store.newConversation('');
question.value = recall('session', 'draft');
refresh();
openConversation(last);
if (home() === question) question.focus();
if (getKey()) loadModels();
else enterKey(fetchModels);
