"""Topics, keywords and prompt phrasings of the demo, written by hand.

A keyword is an aspect of a hotel, a book or a notebook computer that happy and unhappy reviewers
both mention, so that a prompt alone does not give the sentiment away. No keyword is an opinion.
"""

from __future__ import annotations

# Topic -> the word that prompts use for it.
TOPICS = {"hotel": "酒店", "book": "书", "notebook": "笔记本电脑"}

# A review belongs to the topic whose marks it mentions most often (a draw belongs to none).
TOPIC_MARKS = {
    "hotel": (
        "酒店 宾馆 房间 入住 前台 早餐 大堂 携程 客房 住的 床 卫生间 服务员 "
        "饭店 房价 退房 房型 标间 电梯 隔音 窗户 洗澡 毛巾 拖鞋 星级 自助餐 "
        "餐厅 旅馆 招待所 火车站 市中心 地理位置"
    ),
    "book": (
        "这本书 本书 作者 读者 阅读 当当 看完 故事 小说 文字 看了 书中 书的 "
        "此书 书里 套书 印刷 情节 出版 文笔 翻译 孩子 绘本 插图 主人公 章节 "
        "封面 纸张 宝宝 一本 内容 买书 读了 读完"
    ),
    "notebook": (
        "笔记本 本本 电脑 键盘 屏幕 系统 散热 机器 本子 电池 显卡 硬盘 内存 "
        "驱动 配置 外观 做工 光驱 触摸板 摄像头 风扇 开机 机子 京东 显示器 "
        "网卡 蓝牙 接口 发热 分区 续航 鼠标 指纹 屏 上网本"
    ),
}

KEYWORDS = {
    "hotel": (
        "房间 服务 早餐 设施 价格 前台 服务员 环境 装修 客人 星级 位置 卫生 "
        "餐厅 大堂 卫生间 大床房 电话 服务态度 性价比 客房 商务 电视 豪华 "
        "隔音 门口 空调 饭店 交通 味道 上网 房价 周围 楼层 行李 品种 吃饭 "
        "车站 停车 窗户 标间 电梯 宽带 火车站 机场 出租车 地理位置 周边 床 "
        "浴室 毛巾 热水 洗澡 拖鞋 自助餐 马路 市中心 网络 灯光 走廊 地毯 "
        "枕头 被子 床单 空间 水果 餐饮 门童 总台 升级 押金 发票 退房 结账 "
        "噪音 步行街 景区 海边 风景 游泳池 健身房 大厅 家具 马桶 淋浴 浴缸 "
        "洗手间 阳台 会议 出差 旅游 朋友 经理 员工 保安 房卡 冰箱 矿泉水 "
        "牙刷 菜 咖啡 小吃 超市 地铁 公交 购物 管理 预订 入住 接待 设备 "
        "硬件 硬件设施 人员 态度 反馈 免费"
    ),
    "book": (
        "作者 内容 故事 文字 孩子 质量 读者 小说 阅读 情节 印刷 评论 图片 "
        "语言 观点 生活 朋友 儿子 女儿 宝宝 小孩 英语 出版社 人物 文笔 翻译 "
        "插图 封面 纸张 包装 价格 思想 历史 心理 女人 职场 道理 方法 理论 "
        "知识 案例 图画 颜色 色彩 章节 结尾 结局 开头 主人公 女主角 爱情 "
        "人生 文化 社会 哲学 经济 管理 投资 教育 妈妈 父母 家长 老师 学生 "
        "中国 中国人 日本 外国 电影 电视剧 童话 漫画 绘本 游戏 推理 悬念 "
        "散文 诗 经典 题材 风格 感情 书名 介绍 推荐 送货 速度 字体 排版 "
        "光盘 作品 名气 时间 东西 工作 励志 技巧 心得 健康 食谱 照片 地图 "
        "传记 大学 考试 单词"
    ),
    "notebook": (
        "系统 屏幕 内存 键盘 散热 驱动 电池 硬盘 机器 声音 显卡 京东 配置 "
        "发热 软件 价格 无线 摄像头 做工 触摸板 设计 鼠标 游戏 光驱 开机 "
        "上网 风扇 热量 光盘 手感 性能 接口 网卡 蓝牙 指纹 外壳 服务 重量 "
        "续航 外观 功能 处理器 包装 烤漆 钢琴烤漆 电源 程序 键位 分区 亮度 "
        "品牌 客服 颜色 温度 速度 音响 音箱 喇叭 耳机 扬声器 分辨率 显示效果 "
        "可视角度 边框 转轴 面板 手掌 噪音 电源线 适配器 充电 机身 材质 塑料 "
        "金属 按键 回车键 空格键 方向键 鼠标键 电影 办公 学生 女生 发票 送货 "
        "快递 售后 赠品 包 内胆包 贴膜 硬件 兼容性 预装 重装 操作系统 蓝屏 "
        "死机 坏点 主板 芯片 接缝 螺丝 上网本 便携 尺寸 性价比 待机时间 "
        "无线网卡 商务 麦克风 读卡器"
    ),
}

# {w}: one or two keywords in corner quotes; {t}: the topic word.
PHRASINGS = (
    "写一条提到{w}的{t}评论",
    "写一条{t}评论，说说{w}",
    "请为{t}写一条评论，提到{w}",
    "谈谈{t}的{w}",
)


def keywords(topic: str) -> tuple[str, ...]:
    """The keywords of a topic, without repetition, in the order written."""
    return tuple(dict.fromkeys(KEYWORDS[topic].split()))


def prompt_text(topic: str, words: tuple[str, ...], phrasing: int) -> str:
    """One prompt: keywords in corner quotes, joined by 和, inside a phrasing."""
    quoted = "和".join(f"「{word}」" for word in words)
    return PHRASINGS[phrasing].format(w=quoted, t=TOPICS[topic])
