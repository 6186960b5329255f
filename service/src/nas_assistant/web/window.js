// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The chat's window: what moves, opens, speaks and looks, whatever is said in it.

import { element } from './dom.js';
import { $, announce } from './page.js';
import { say } from './words.js';

export const atEnd = () => $('scroll').scrollHeight - $('scroll').scrollTop - $('scroll').clientHeight < 60;

export function toEnd() {
  $('scroll').scrollTop = $('scroll').scrollHeight;
}

/** Change the thread, and follow its end for those who were there. */
export function following(changeThread) {
  const follow = atEnd();
  changeThread();
  if (follow) toEnd();
  $('to-end').hidden = atEnd();
}

export function notify(text, retry) {
  $('notice').textContent = text;
  $('notice-retry').hidden = !text || !retry;
  $('notice-retry').onclick = retry;
}

export function openSide(open) {
  $('side').classList.toggle('open', open);
  $('menu').setAttribute('aria-expanded', String(open));
  (open ? $('new') : home()).focus();
}

/** Where the focus goes when what had it is gone. On a phone, the question would bring the keyboard up. */
export const home = () => ($('menu').checkVisibility() ? $('menu') : $('question'));

export async function copy(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // Over plain HTTP there is no clipboard, but there is this old way.
    const area = element('textarea', { value: text });
    document.body.append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
    button.focus();
  }
  const use = button.querySelector('use');
  use.setAttribute('href', '#icon-check');
  setTimeout(() => use.setAttribute('href', '#icon-copy'), 1500);
  announce(say('copied'));
}
