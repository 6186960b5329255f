// SPDX-License-Identifier: GPL-3.0-or-later
// Copyright: nas.assistant contributors
// How pages speak, and the words of the chat, some of which others use too. `note_…` are sentences about an answer,
// by the API's error codes and ours.

const WORDS = {
  en: {
    app: 'Assistant',
    skip: 'Skip to the question',
    conversations: 'Conversations',
    newConversation: 'New conversation',
    settings: 'Settings',
    options: 'This conversation',
    model: 'Model',
    noModel: 'no model',
    messages: 'Messages',
    question: 'Your question',
    placeholder: 'Ask something…',
    send: 'Send',
    stop: 'Stop',
    hint: 'Enter sends, Shift+Enter starts a new line, Escape stops.',
    welcome: 'What would you like to know?',
    welcomeMore: 'Conversations are kept in this browser and nowhere else.',
    you: 'You',
    assistant: 'Assistant',
    copy: 'Copy',
    copied: 'Copied',
    copyCode: 'Copy code',
    edit: 'Edit the question',
    again: 'Answer again',
    retry: 'Try again',
    toEnd: 'To the end',
    editing: 'Sending replaces your last question and its answer.',
    waiting: 'Waiting for an answer…',
    thinking: 'Thinking…',
    thought: 'Thoughts before the answer',
    answering: 'The assistant is answering.',
    complete: 'The answer is complete:',
    outside: 'answered outside of this house',
    inCloud: '{name} (outside of this house)',
    tokens: '{n} tokens',
    speed: '{n} tokens a second',
    key: 'API key',
    keyWhy: 'The assistant answers those who have a key. Whoever set up this NAS can give you one.',
    keyOpen: 'This connection is not encrypted: others on the way could read the key.',
    remember: 'Remember on this device',
    enterKey: 'Enter a key',
    forgetKey: 'Forget the key',
    forgotten: 'This device has forgotten the key.',
    save: 'Save',
    cancel: 'Cancel',
    close: 'Close',
    language: 'Language',
    theme: 'Colours',
    themeAuto: 'as the device',
    themeLight: 'light',
    themeDark: 'dark',
    exportAll: 'Export all conversations',
    import: 'Import conversations',
    imported: 'Imported: {n}. Here already: {m}.',
    think: 'Models that can think do so before they answer: slower, often better',
    toAdmin: 'State of the assistant, for admins',
    importBad: 'This file is no export of conversations. Nothing was imported.',
    title: 'Title',
    system: 'System prompt',
    systemWhy: 'What the assistant should keep in mind in this conversation. May be empty.',
    exportOne: 'Export as Markdown',
    delete: 'Delete',
    deleteSure: 'Delete “{title}”? It cannot be brought back.',
    goneElsewhere: 'This conversation was deleted in another window.',
    notKept: 'This browser could not keep the conversation ({reason}). It is lost when you leave; export it.',
    full: 'This browser has no room left, so this conversation is lost when you leave. Export it, or delete others.',
    note_broken: 'The connection broke off. What had come until then is kept.',
    note_context_length_exceeded: 'This is more than the model can read at once. Make it shorter.',
    note_forgot: 'The conversation has become longer than the model can read: it no longer knows the beginning.',
    note_invalid_api_key: 'The assistant does not know this key.',
    note_length: 'The answer was cut off: it has reached the greatest length.',
    note_model_not_found: 'This model is not loaded. Choose another one.',
    note_network: 'The NAS cannot be reached. Is this device in its network?',
    note_no_key: 'The assistant needs a key.',
    note_no_model: 'No model is ready yet.',
    note_not_ready: 'The assistant is not ready yet. Wait a moment. ({message})',
    note_other: 'That did not work: {message}',
    note_queue_full: 'Too many questions are waiting already. Try again in {wait} s.',
    note_rate_limit_exceeded: 'This key has reached a limit. {message}',
    note_service_unavailable: 'The assistant is starting or was stopped. Try again in a moment.',
    note_stopped: 'Stopped.',
    note_timeout: 'No answer came in time. Ask for less.',
    note_unfinished: 'This answer is not finished.',
  },
  'zh-Hans': {
    app: '助手',
    skip: '跳到输入框',
    conversations: '对话',
    newConversation: '新对话',
    settings: '设置',
    options: '此对话',
    model: '模型',
    noModel: '没有模型',
    messages: '消息',
    question: '您的问题',
    placeholder: '输入问题…',
    send: '发送',
    stop: '停止',
    hint: 'Enter 发送，Shift+Enter 换行，Esc 停止。',
    welcome: '想了解什么？',
    welcomeMore: '对话只保存在此浏览器中。',
    you: '您',
    assistant: '助手',
    copy: '复制',
    copied: '已复制',
    copyCode: '复制代码',
    edit: '修改问题',
    again: '重新回答',
    retry: '重试',
    toEnd: '到最后',
    editing: '发送后将替换上一个问题及其回答。',
    waiting: '正在等待回答…',
    thinking: '正在思考…',
    thought: '回答前的思考',
    answering: '助手正在回答。',
    complete: '回答完毕：',
    outside: '由家庭网络之外的服务回答',
    inCloud: '{name}（家庭网络之外）',
    tokens: '{n} 个词元',
    speed: '每秒 {n} 个词元',
    key: 'API 密钥',
    keyWhy: '助手只回答持有密钥的人。请向设置这台 NAS 的人索取。',
    keyOpen: '此连接未加密：密钥可能在途中被他人读取。',
    remember: '在此设备上记住',
    enterKey: '输入密钥',
    forgetKey: '忘记密钥',
    forgotten: '此设备已忘记密钥。',
    save: '保存',
    cancel: '取消',
    close: '关闭',
    language: '语言',
    theme: '配色',
    themeAuto: '跟随设备',
    themeLight: '浅色',
    themeDark: '深色',
    exportAll: '导出全部对话',
    import: '导入对话',
    imported: '已导入：{n}。已存在：{m}。',
    think: '会思考的模型先思考再回答：较慢，但往往更好',
    toAdmin: '助手状态（管理员）',
    importBad: '此文件不是导出的对话，未导入任何内容。',
    title: '标题',
    system: '系统提示词',
    systemWhy: '助手在此对话中应记住的内容，可以为空。',
    exportOne: '导出为 Markdown',
    delete: '删除',
    deleteSure: '删除“{title}”？删除后无法恢复。',
    goneElsewhere: '此对话已在另一个窗口中删除。',
    notKept: '浏览器无法保存此对话（{reason}），离开页面后将丢失，请先导出。',
    full: '浏览器存储空间已满，离开页面后此对话将丢失。请导出此对话，或删除其他对话。',
    note_broken: '连接中断，已收到的内容已保留。',
    note_context_length_exceeded: '内容超出模型一次能读取的长度，请缩短。',
    note_forgot: '对话已超出模型能读取的长度，模型不再记得开头部分。',
    note_invalid_api_key: '助手不认识此密钥。',
    note_length: '回答已达到最大长度，被截断。',
    note_model_not_found: '此模型未加载，请选择其他模型。',
    note_network: '无法连接到 NAS。此设备在它的网络中吗？',
    note_no_key: '助手需要密钥。',
    note_no_model: '还没有就绪的模型。',
    note_not_ready: '助手尚未就绪，请稍候。（{message}）',
    note_other: '出错了：{message}',
    note_queue_full: '等待中的问题太多，请在 {wait} 秒后重试。',
    note_rate_limit_exceeded: '此密钥已达到限制。{message}',
    note_service_unavailable: '助手正在启动或已停止，请稍后重试。',
    note_stopped: '已停止。',
    note_timeout: '未能及时得到回答，请缩小问题范围。',
    note_unfinished: '此回答尚未完成。',
  },
};

let language = 'en';

/** Know more words, in the shape of those above. */
export function learn(more) {
  for (const [tag, words] of Object.entries(more)) Object.assign(WORDS[tag], words);
}

/** Choose the first language that the page speaks; `wanted` are tags as in `navigator.languages`. */
export function speak(wanted) {
  const tag = wanted.find((each) => /^(en|zh)\b/i.test(each)) ?? 'en';
  language = /^zh/i.test(tag) ? 'zh-Hans' : 'en';
  return language;
}

/** The words for `key`, with `{name}` replaced by `values.name`. */
export function say(key, values = {}) {
  return WORDS[language][key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? '');
}

/** The sentence about an answer or a request that went wrong. */
export function sayNote({ code, message, wait }) {
  const key = Object.hasOwn(WORDS.en, `note_${code}`) ? `note_${code}` : 'note_other';
  return say(key, { message: message || code, wait: wait || 5 });
}

/** Put words wherever the markup asks for them. */
export function fillWords(root) {
  for (const node of root.querySelectorAll('[data-word]')) node.textContent = say(node.dataset.word);
  for (const node of root.querySelectorAll('[data-label]')) {
    node.title = say(node.dataset.label);
    node.setAttribute('aria-label', node.title);
  }
  for (const node of root.querySelectorAll('[data-placeholder]')) {
    node.placeholder = say(node.dataset.placeholder);
  }
}
