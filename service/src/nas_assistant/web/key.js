// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The form that asks for the key.

import { $, openDialog } from './page.js';
import { setKey } from './settings.js';
import { sayNote } from './words.js';

let entering; // while the key is being asked for

/** Whether it is the key that is in the way. */
export const refuses = (trouble) => ['invalid_api_key', 'admin_only'].includes(trouble?.code);

/**
 * Ask for a key until `attempt` finds nothing wrong with it, and keep that one. False if nobody gave one.
 *
 * `attempt` takes a key, and gives what went wrong.
 */
export function enterKey(attempt, sentence = '') {
  entering ??= askKey(attempt, sentence).finally(() => (entering = undefined));
  return entering;
}

async function askKey(attempt, sentence) {
  $('key-open').hidden = isSecureContext;
  for (;;) {
    $('key-note').textContent = sentence;
    $('key-field').value = '';
    if ((await openDialog($('key'))) !== 'save') return false;
    const key = $('key-field').value.trim();
    $('key-field').value = '';
    // Nothing else can be in a header.
    const trouble = /^[!-~]+$/.test(key) ? await attempt(key) : { code: 'invalid_api_key' };
    if (!refuses(trouble)) {
      setKey(key, $('key-remember').checked);
      return true;
    }
    sentence = sayNote(trouble);
  }
}
