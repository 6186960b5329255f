// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The conversations, in the browser's IndexedDB.
//
// A conversation: {id, title, system, model, changed, messages: [{id, role, text, thought?, model?, tokens?, seconds?, outside?, note?}]}.
// `changed` is in milliseconds since 1970. `note` is {code, message?, wait?}: why an answer is not as it should be.

const STORE = 'conversations';
const channel = new BroadcastChannel('nas-assistant');
let opening;

/** Call `heard(id)` when another window has changed a conversation. */
export function onChange(heard) {
  channel.onmessage = ({ data }) => heard(data);
}

export const newId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('');

export function newConversation(model) {
  return { id: newId(), title: '', system: '', model, changed: Date.now(), messages: [] };
}

/** What a list shows of each, the newest first. Read from the index alone: texts can be long. */
export async function list() {
  const found = [];
  await transaction('readonly', (store) => {
    const cursors = store.index('list').openKeyCursor(null, 'prev');
    cursors.onsuccess = () => {
      const cursor = cursors.result;
      if (!cursor) return;
      found.push({ id: cursor.primaryKey, title: cursor.key[1] });
      cursor.continue();
    };
  });
  return found;
}

export const read = (id) => transaction('readonly', (store) => store.get(id));
export const readAll = () => transaction('readonly', (store) => store.getAll());

export async function put(conversation) {
  await transaction('readwrite', (store) => store.put(conversation));
  channel.postMessage(conversation.id);
}

/** Apply `edit` to what is kept now, which another window may have changed. False if it is gone. */
export async function change(id, edit) {
  let found;
  await transaction('readwrite', (store) => {
    const reading = store.get(id);
    reading.onsuccess = () => {
      found = reading.result;
      if (found) {
        edit(found);
        store.put(found);
      }
    };
  });
  if (found) channel.postMessage(id);
  return Boolean(found);
}

export async function remove(id) {
  await transaction('readwrite', (store) => store.delete(id));
  channel.postMessage(id);
}

async function transaction(mode, work) {
  const database = await (opening ??= open());
  return new Promise((resolve, reject) => {
    const all = database.transaction(STORE, mode);
    const request = work(all.objectStore(STORE));
    all.oncomplete = () => resolve(request?.result);
    all.onabort = () => reject(all.error);
  });
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open('nas-assistant', 1);
    request.onupgradeneeded = () =>
      request.result.createObjectStore(STORE, { keyPath: 'id' }).createIndex('list', ['changed', 'title']);
    request.onerror = () => {
      opening = undefined;
      reject(request.error);
    };
    request.onsuccess = () => {
      // The owner cleared the browser's data, or a newer page in another window changes its shape.
      request.result.onclose = () => (opening = undefined);
      request.result.onversionchange = () => {
        request.result.close();
        opening = undefined;
      };
      resolve(request.result);
    };
  });
}
