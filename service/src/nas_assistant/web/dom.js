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

/**
 * Make `node` show what `wanted` does. What it shows already is not touched, so that focus, selection and
 * what was opened stay. Of children, those are the same that have the same name and `data-key`.
 */
export function morph(node, wanted) {
  if (node.nodeType === Node.TEXT_NODE) {
    if (node.data !== wanted.data) node.data = wanted.data;
    return;
  }
  for (const name of node.getAttributeNames()) {
    if (name !== 'open' && !wanted.hasAttribute(name)) node.removeAttribute(name);
  }
  for (const { name, value } of wanted.attributes) {
    if (node.getAttribute(name) !== value) node.setAttribute(name, value);
  }
  const spare = [...node.childNodes];
  const children = [...wanted.childNodes].map((child) => {
    const at = spare.findIndex((each) => each.nodeName === child.nodeName && each.dataset?.key === child.dataset?.key);
    if (at < 0) return child;
    const [found] = spare.splice(at, 1);
    morph(found, child);
    return found;
  });
  for (const each of spare) each.remove();
  children.forEach((child, i) => {
    if (node.childNodes[i] !== child) node.insertBefore(child, node.childNodes[i] ?? null);
  });
}
