// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// What every page does, whatever is on it.

import { fillWords, speak } from './words.js';

export const $ = (id) => document.getElementById(id);

/** Have a screen reader say it: once, where each word or figure would be a flood. */
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

/** Speak the chosen language, or the browser's; gives the one it is. */
export function useLanguage(chosen) {
  document.documentElement.lang = speak(chosen ? [chosen] : navigator.languages);
  fillWords(document);
  return document.documentElement.lang;
}

export function useTheme(theme) {
  document.documentElement.dataset.theme = theme;
}
