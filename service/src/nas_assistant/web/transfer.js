// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// Conversations as files, and back.

import { newId } from './store.js';
import { say } from './words.js';

const FORMAT = 'nas-assistant-conversations';

export function toMarkdown({ title, system, messages }) {
  const parts = [`# ${title}`];
  if (system) parts.push(`## ${say('system')}`, system);
  for (const { role, text } of messages) {
    parts.push(`## ${say(role === 'user' ? 'you' : 'assistant')}`, text);
  }
  return `${parts.join('\n\n')}\n`;
}

export function toJson(conversations) {
  return `${JSON.stringify({ format: FORMAT, version: 1, conversations }, null, 1)}\n`;
}

/** The conversations in an export. Throws if it is none; takes only the fields that are known. */
export function fromJson(text) {
  const file = JSON.parse(text);
  if (file?.format !== FORMAT || file.version !== 1) throw new TypeError('another format');
  return file.conversations.map((each) => ({
    id: /^[0-9a-f]{24}$/.test(string(each.id)) ? each.id : newId(),
    title: string(each.title),
    system: string(each.system),
    model: string(each.model),
    changed: time(each.changed),
    messages: each.messages.map(message),
  }));
}

function message(each) {
  if (!['user', 'assistant'].includes(each.role)) throw new TypeError('an unknown role');
  const known = { id: newId(), role: each.role, text: string(each.text) };
  if (each.thought) known.thought = string(each.thought);
  if (each.model) known.model = string(each.model);
  if (each.outside) known.outside = true;
  if (each.note) known.note = { code: string(each.note.code), message: string(each.note.message ?? '') };
  return known;
}

function string(value) {
  if (typeof value !== 'string') throw new TypeError('not a text');
  return value;
}

function time(value) {
  if (!Number.isSafeInteger(value)) throw new TypeError('not a time');
  return value;
}

/** Give the browser a file to save. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name.replace(/[^\p{L}\p{N} ._-]/gu, '_');
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
