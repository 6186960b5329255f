// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors

import { say } from './words.js';

/** An element with properties and children. Text is only ever text: there is no way to markup. */
export function element(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** A button that shows one of the page's icons. What it does is found by its `data-action`. */
export function iconButton(icon, action, word) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg');
  const use = document.createElementNS('http://www.w3.org/2000/svg', 'use');
  use.setAttribute('href', `#icon-${icon}`);
  svg.append(use);
  svg.setAttribute('aria-hidden', 'true');
  const button = element('button', { type: 'button', className: 'icon', title: say(word) }, svg);
  button.setAttribute('aria-label', button.title);
  button.dataset.action = action;
  return button;
}
