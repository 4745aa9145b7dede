/* Elements of the page. All texts are set as text, never as HTML. */

export const element = (tag, name = "", text = "") => {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  return made;
};

export const labelled = (text, ...fields) => {
  const made = element("label", "field");
  made.append(element("span", "", text), ...fields);
  return made;
};

export const button = (text, act, name = "") => {
  const made = element("button", name, text);
  made.type = "button";
  made.addEventListener("click", act);
  return made;
};

/* Says it to who listens, not looks. */
export const say = (words) => {
  document.querySelector("#spoken").textContent = words;
};

export const save = (name, text) => {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
};
