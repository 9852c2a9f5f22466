// The words of the page in its two languages.

const WORDS = {
  en: {
    placeholder: "Describe what you look for, or drop a picture", choose: "Search by a picture", forget: "Remove the picture",
    search: "Search", filters: "Filters", columns: "Columns on cards", any: "any", range: "A number, or a range: 10..20, 10.. or ..20", key: "API key", use: "Use", more: "More", copy: "Copy", copied: "Copied",
    curl: "The same search with curl", drop: "Drop the picture here", words: "Where the words matched",
    first: "first", score: "re-ranked", similar: "Similar", larger: "Larger", close: "Close", docs: "All requests",
    empty: ": the index holds no pictures yet", narrow: (names) => `: no picture passes the filters (${names}); take one away`,
    from: "from", to: "to", other: "中文",
    ready: (n) => `${n.toLocaleString("en")} pictures`,
    stages: (second) => !second ? "; first stage alone" : second.score === "published" ? "; re-ranked as published"
      : `; re-ranked, the match weighs ${second.weight === "match" ? "all" : second.weight}`,
    found: (n, ms) => `${n} result${n === 1 ? "" : "s"} in ${ms} ms`, none: "Nothing found",
    incomplete: "time ran out before all were re-ranked", like: "Pictures like the chosen one",
    searching: "Searching…", busy: "The service is busy; trying again…", unreachable: "The service does not answer",
    unknown: (words) => `not in the model's vocabulary: ${words}`,
    noPicture: "That is no picture file", locked: "This service needs a key", result: (n, text) => `Result ${n}: ${text}`,
  },
  zh: {
    placeholder: "描述要找的图片，或拖入一张图片", choose: "以图搜图", forget: "移除图片",
    search: "搜索", filters: "筛选", columns: "卡片上的列", any: "不限", range: "一个数，或范围：10..20、10.. 或 ..20", key: "API 密钥", use: "使用", more: "更多", copy: "复制", copied: "已复制",
    curl: "用 curl 进行同样的搜索", drop: "把图片放在这里", words: "各词在图中匹配的位置",
    first: "初排", score: "重排", similar: "相似图片", larger: "放大", close: "关闭", docs: "全部请求",
    empty: "：索引里还没有图片", narrow: (names) => `：没有图片满足筛选条件（${names}），请去掉一个`,
    from: "从", to: "到", other: "English",
    ready: (n) => `共 ${n.toLocaleString("zh")} 张图片`,
    stages: (second) => !second ? "；只用初排" : second.score === "published" ? "；按论文的规则重排"
      : `；重排，匹配的权重：${second.weight === "match" ? "只用匹配" : second.weight}`,
    found: (n, ms) => `${n} 个结果，用时 ${ms} 毫秒`, none: "没有找到",
    incomplete: "时间已到，未全部重排", like: "与所选图片相似的图片",
    searching: "正在搜索…", busy: "服务繁忙，正在重试…", unreachable: "服务没有响应",
    unknown: (words) => `模型词表中没有：${words}`,
    noPicture: "这不是图片文件", locked: "此服务需要密钥", result: (n, text) => `结果 ${n}：${text}`,
  },
};

let language = localStorage.getItem("language") ?? (/^zh/i.test(navigator.language) ? "zh" : "en");

export const said = (name, ...values) => {
  const word = WORDS[language][name];
  return typeof word === "function" ? word(...values) : word;
};

export const spoken = () => language;

export function turn() {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
}

// Fills in the words of everything below an element that asks for them.
export function speak(root) {
  for (const [attribute, property] of [["text", "textContent"], ["placeholder", "placeholder"], ["title", "title"]]) {
    for (const element of root.querySelectorAll(`[data-${attribute}]`)) element[property] = said(element.dataset[attribute]);
  }
  for (const element of root.querySelectorAll("[data-label]")) element.setAttribute("aria-label", said(element.dataset.label));
}
