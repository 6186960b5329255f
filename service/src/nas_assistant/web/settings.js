// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// Small things that the browser keeps: on the device, or until the window is closed.

const PREFIX = 'nas-assistant.';

/** A value of `area` ('local' or 'session'), or ''. A browser may refuse both: then nothing is kept. */
export function recall(area, name) {
  try {
    return window[`${area}Storage`].getItem(PREFIX + name) ?? '';
  } catch {
    return '';
  }
}

export function remember(area, name, value) {
  try {
    if (value) window[`${area}Storage`].setItem(PREFIX + name, value);
    else window[`${area}Storage`].removeItem(PREFIX + name);
  } catch {
    // Refused or full: these few bytes can be chosen again.
  }
}

let keptKey = ''; // where the browser keeps nothing

export const getKey = () => recall('session', 'key') || recall('local', 'key') || keptKey;

export function setKey(key, lasting) {
  remember('session', 'key', lasting ? '' : key);
  remember('local', 'key', lasting ? key : '');
  keptKey = '';
  keptKey = getKey() ? '' : key;
}
