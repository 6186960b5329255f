// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// The window: what moves, opens, speaks and looks, whatever is said in it.

import { element } from './dom.js';
import { fillWords, say, speak } from './words.js';

export const $ = (id) => document.getElementById(id);

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

/** Have a screen reader say it: once, where each word of an answer would be a flood. */
export function announce(text) {
  $('status').textContent = text;
}

/** Show a dialog; gives the value of the button that closed it. */
export function openDialog(dialog) {
  dialog.returnValue = '';
  if (!dialog.open) dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener('close', () => resolve(dialog.returnValue), { once: true });
  });
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

export function useLanguage(chosen) {
  document.documentElement.lang = speak(chosen ? [chosen] : navigator.languages);
  $('language').value = document.documentElement.lang;
  fillWords(document);
}

export function useTheme(theme) {
  document.documentElement.dataset.theme = theme;
  $('theme').value = theme;
}
