// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// How a message looks.

import { element, iconButton } from './dom.js';
import { render } from './markdown.js';
import { say, sayNote } from './words.js';

/**
 * Make `thread` show `messages`. Those that it shows already keep their nodes.
 *
 * `running` is the message that is being written, if any.
 */
export function showMessages(thread, messages, running) {
  const lastQuestion = messages.findLast((message) => message.role === 'user');
  const views = messages.map((message) => {
    const view = document.getElementById(viewId(message)) ?? create(message);
    const last = !running && message === messages.at(-1);
    update(view, message, { running: message === running, last, edit: !running && message === lastQuestion });
    return view;
  });
  const wanted = new Set(views);
  for (const view of [...thread.children]) if (!wanted.has(view)) view.remove();
  views.forEach((view, i) => {
    if (thread.children[i] !== view) thread.insertBefore(view, thread.children[i] ?? null);
  });
}

/** Show what has come of an answer so far. */
export function showText(message) {
  const view = document.getElementById(viewId(message));
  if (!view) return;
  render(view.querySelector('.body'), message.text);
  showThought(view, message, true);
}

/** What a model wrote before its answer: plain text, for who opens it. */
function showThought(view, { text, thought }, running) {
  const details = view.querySelector('.thought');
  details.hidden = !thought;
  if (!thought) return;
  details.firstChild.textContent = say(running && !text ? 'thinking' : 'thought');
  details.lastChild.textContent = thought;
}

/** What a screen reader says of a message at once; the rest is there to be read. */
export const spoken = (message) =>
  document.getElementById(viewId(message)).querySelector('.body').textContent.slice(0, 1000);

export const messageIdOf = (node) => node.closest('article')?.dataset.id;

const viewId = (message) => `message-${message.id}`;

function create({ id, role }) {
  const view = element(
    'article',
    { className: role, id: `message-${id}` },
    element('h2', { className: 'unseen', textContent: say(role === 'user' ? 'you' : 'assistant') }),
    element('details', { className: 'thought', hidden: true }, element('summary'), element('div')),
    element('div', { className: 'body' }),
    element('div', { className: 'foot' }),
  );
  view.dataset.id = id;
  return view;
}

function update(view, message, { running, last, edit }) {
  const [, , body, foot] = view.children;
  view.classList.toggle('running', running);
  if (message.role === 'user') body.textContent = message.text;
  else render(body, message.text);
  showThought(view, message, running);
  // Buttons that stay as they are keep the focus.
  const state = JSON.stringify([{ ...message, text: Boolean(message.text), thought: Boolean(message.thought) }, running, last, edit]);
  if (view.dataset.state === state) return;
  view.dataset.state = state;
  foot.replaceChildren();
  if (running) {
    if (!message.text && !message.thought) foot.append(element('p', { className: 'waiting', textContent: say('waiting') }));
    return;
  }
  if (message.outside) foot.append(element('p', { className: 'outside', textContent: say('outside') }));
  if (message.note) {
    const note = element('p', { className: 'note', textContent: sayNote(message.note) });
    note.dataset.code = message.note.code;
    if (last) {
      const retry = element('button', { type: 'button', textContent: say('retry') });
      retry.dataset.action = 'again';
      note.append(' ', retry);
    }
    foot.append(note);
  }
  const tools = element('div', { className: 'tools' });
  if (message.text) tools.append(iconButton('copy', 'copy', 'copy'));
  if (edit) tools.append(iconButton('edit', 'edit', 'edit'));
  if (last && !message.note) tools.append(iconButton('again', 'again', 'again'));
  tools.append(element('small', { textContent: facts(message) }));
  foot.append(tools);
}

function facts({ model, tokens, seconds }) {
  const parts = [model];
  if (tokens) parts.push(say('tokens', { n: tokens }));
  if (tokens && seconds) parts.push(say('speed', { n: Number((tokens / seconds).toPrecision(2)) }));
  return parts.filter(Boolean).join(' · ');
}
